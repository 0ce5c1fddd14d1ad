//! A relay in the middle, and the ends that bind legs on it.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use relay::server::plane::{Config, Event, Input, News, NodeId};
use relay::udp::{Control, Forwarder};
use socket2::Socket;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use wire::relay::{AllocationId, Body, Frame, Header, LegKey, Side, seal};

use super::load::{receive, send};
use super::wires::Wires;

/// A running data plane and the one that speaks to it.
pub struct Relay {
    pub forwarder: Forwarder,
    control: Control,
    events: mpsc::Receiver<Event>,
    runtime: Runtime,
}

/// One end's leg.
pub struct Leg {
    pub port: u16,
    allocation: AllocationId,
    side: Side,
    key: LegKey,
    counter: u64,
}

impl Relay {
    pub fn start(wires: &Wires, config: Config) -> Result<Self> {
        let runtime = Builder::new_current_thread().build().context("a runtime")?;
        let forwarder =
            wires.middle.enter(move || Forwarder::start(config, [1; 32]).context("starting the data plane"))?;
        let control = forwarder.control();
        let events = runtime.block_on(control.subscribe())?;
        Ok(Self { forwarder, control, events, runtime })
    }

    /// The legs of a pair of these nodes, which are admitted if they were not.
    pub fn allocate(&mut self, nodes: [usize; 2]) -> Result<[Leg; 2]> {
        let [one, other] = nodes.map(node);
        self.send(Input::Admit(one))?;
        self.send(Input::Admit(other))?;
        self.send(Input::Allocate { by: one, partner: other, hint: None })?;
        let mut legs = [self.leg()?, self.leg()?];
        if legs[0].0 != one {
            legs.swap(0, 1);
        }
        Ok(legs.map(|(_, leg)| leg))
    }

    fn send(&self, input: Input) -> Result<()> {
        Ok(self.runtime.block_on(self.control.send(input))?)
    }

    fn leg(&mut self) -> Result<(NodeId, Leg)> {
        loop {
            let Event { to, news, .. } = self.events.blocking_recv().context("the data plane has ended")?;
            match news {
                News::Allocated { allocation, side, port, key, counter } => {
                    return Ok((to, Leg { port, allocation, side, key, counter }));
                }
                News::Refused(reason) => bail!("refused: {reason:?}"),
                // Of pairs before.
                _ => {}
            }
        }
    }
}

fn node(number: usize) -> NodeId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.to_be_bytes());
    NodeId(id)
}

/// Binds a leg to this socket.
pub fn bind(socket: &Socket, relay: SocketAddr, leg: Leg) -> Result<()> {
    let Leg { allocation, side, key, counter, .. } = leg;
    let header = Header { allocation, side, counter: counter + 1 };
    let mut body = Body::Bind;
    loop {
        send(socket, relay, &seal(&key, &header, &body))?;
        let reply = receive(socket).context("the relay does not answer")?;
        let frame = Frame::parse(&reply).context("a relay message")?;
        body = match frame.open(&key)? {
            Body::Challenge(token) => Body::Answer(token),
            Body::Bound { .. } => return Ok(()),
            Body::Bind | Body::Answer(_) => bail!("a relay that speaks like a node"),
        };
    }
}
