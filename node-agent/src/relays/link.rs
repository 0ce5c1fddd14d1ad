//! An open channel, as the tasks use it: the machine's is the crate `channel`'s, a test's is a queue.

use super::{Credentials, Relay, Transport, last::LastOverTls, proxy::Proxies};
use crate::carry::Outlet;
use channel::{Channel, Heard, Options, Packets, Receiver, Sender, Target};
use std::time::Duration;
use wgdev::BoxFuture;
use wire::control::{ToNode, ToRelay};

/// An open channel, both ends of which have proven who they are.
pub struct Link {
    /// What carries it.
    pub transport: Transport,
    /// Whether the one before it went over TLS.
    pub again: bool,
    /// To the relay.
    pub outgoing: Box<dyn Outgoing>,
    /// From the relay.
    pub incoming: Box<dyn Incoming>,
    /// For packets of WireGuard, to the relay.
    pub outlet: Box<dyn Outlet>,
}

/// The way to the relay.
pub trait Outgoing: Send {
    /// Sends a message, as soon as the relay takes it.
    fn send<'a>(&'a mut self, message: &'a ToRelay) -> BoxFuture<'a, anyhow::Result<()>>;
}

/// The way from the relay.
pub trait Incoming: Send {
    /// The next message, or packets of WireGuard, which are then in `packets`; `None` when the relay has closed the channel.
    fn hear<'a>(&'a mut self, packets: &'a mut Packets) -> BoxFuture<'a, anyhow::Result<Option<Heard<ToNode>>>>;
}

/// Opens a channel within `patience`, whose packets stay out of the mesh. Over TLS it goes through a proxy if there is one for the relay, and
/// begins at once if the last one went that way.
pub async fn open(
    credentials: &Credentials,
    relay: &Relay,
    proxies: &Proxies,
    last: &LastOverTls,
    patience: Duration,
) -> anyhow::Result<Link> {
    let Credentials { identity, fwmark } = credentials;
    let target = Target { identity: relay.id.0, quic: relay.quic.clone(), tls: relay.tls.clone() };
    let again = last.was_over_tls(&relay.name);
    let options = Options {
        fwmark: (*fwmark != 0).then_some(*fwmark),
        timeout: patience,
        tls_at_once: again,
        proxied: proxies.through(&relay.tls),
    };
    let channel: Channel = channel::connect(identity, &target, options).await?;
    let transport = channel.transport();
    last.opened(&relay.name, transport);
    let (sender, receiver) = channel.split();
    let outlet = Box::new(sender.outlet());
    Ok(Link { transport, again, outgoing: Box::new(sender), incoming: Box::new(receiver), outlet })
}

impl Outgoing for Sender {
    fn send<'a>(&'a mut self, message: &'a ToRelay) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move { Ok(Sender::send(self, message).await?) })
    }
}

impl Incoming for Receiver {
    fn hear<'a>(&'a mut self, packets: &'a mut Packets) -> BoxFuture<'a, anyhow::Result<Option<Heard<ToNode>>>> {
        Box::pin(async move { Ok(Receiver::hear(self, packets).await?) })
    }
}
