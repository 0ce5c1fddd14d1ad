//! A running relay, and an end on a channel on either side of it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use channel::{Channel, Heard, Identity, Options, Packets, Receiver, Sender, Target};
use relay::control::{Board, Directory, Front, Supervisor, anywhere};
use relay::server::control::Member;
use relay::server::plane::Config;
use relay::udp::Forwarder;
use wire::PublicKey;
use wire::control::{ToNode, ToRelay, VERSION};
use wire::relay::AllocationId;

use super::super::wires::{FAR, NEAR, Wires};
use super::{Carried, Gauge, STARTED, count, packet, runtime};
use crate::wait;

const TLS: u16 = 8443;
const QUIC: u16 = 51_899;
/// Packets under way at most. More than a lane takes at once: what is between the ends is mostly in TCP.
const WINDOW: u64 = 256;
/// Nothing arrives for so long: what is missing is lost, and others may be sent in its place.
const STALLED: Duration = Duration::from_millis(20);

pub(super) fn carry(wires: &Wires, size: usize, seconds: u8) -> Result<Carried> {
    let (_forwarder, _front_end) = start(wires)?;
    let (gauge, sent) = (Gauge::default(), AtomicU64::new(0));
    let shared = Arc::new((gauge, sent));
    let end = |namespace: &crate::net::namespace::Namespace, at, number, partner| {
        let (namespace, shared) = (namespace.clone(), Arc::clone(&shared));
        Box::new(move || {
            namespace.enter(move || {
                runtime()?.block_on(async {
                    let (sender, receiver, allocation) = attach(at, number, partner).await?;
                    let (gauge, sent) = &*shared;
                    if number == 1 {
                        send(&sender, allocation, size, gauge, sent).await
                    } else {
                        receive(receiver, gauge).await
                    }
                })
            })
        }) as Box<dyn FnOnce() -> Result<()> + Send>
    };
    let ends = [end(&wires.sender, NEAR, 1, 2), end(&wires.receiver, FAR, 2, 1)];
    count(&shared.0, size, seconds, ends)
}

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

fn identity(number: u8) -> Identity {
    Identity::from_seed([number; 32])
}

fn start(wires: &Wires) -> Result<(Forwarder, Supervisor)> {
    wires.middle.enter(|| {
        let forwarder = Forwarder::start(Config::default(), [1; 32]).context("starting the data plane")?;
        let directory = Arc::new(Directory::default());
        let member = |number| Member { node: key(number), identity: Some(identity(number).public()) };
        directory.replace(BTreeMap::from([1, 2].map(|number| (number.to_string(), member(number)))));
        let board = Arc::new(Board::default());
        let front = Front {
            identity: identity(100),
            quic: anywhere(QUIC),
            tls: anywhere(TLS),
            boot: 1,
            directory,
            plane: forwarder.control(),
            board: Arc::clone(&board),
        };
        let front_end = front.start().context("starting the front end")?;
        wait::until("the relay's door", STARTED, || {
            board.doors.borrow().tls.map(drop).ok_or_else(|| "it is closed".to_owned())
        })?;
        Ok((forwarder, front_end))
    })
}

/// A channel whose leg of the pair is itself, once data passes.
async fn attach(relay: Ipv4Addr, number: u8, partner: u8) -> Result<(Sender, Receiver, AllocationId)> {
    let target =
        Target { identity: identity(100).public(), quic: Vec::new(), tls: vec![SocketAddr::from((relay, TLS))] };
    let channel: Channel = channel::connect(&identity(number), &target, Options::default()).await?;
    let (sender, mut receiver) = channel.split();
    sender.send(&ToRelay::Hello { version: VERSION, node: key(number) }).await?;
    sender.send(&ToRelay::Allocate { partner: key(partner), hint: None }).await?;
    let mut allocation = None;
    loop {
        match receiver.recv().await?.context("the relay has closed the channel")? {
            ToNode::Allocated { leg, .. } if allocation.is_none() => {
                allocation = Some(leg.allocation);
                sender.send(&ToRelay::Attach { partner: key(partner) }).await?;
            }
            ToNode::Ready(_) => break,
            ToNode::Denied(reason) => bail!("denied: {reason:?}"),
            _ => {}
        }
    }
    Ok((sender, receiver, allocation.context("ready without a leg")?))
}

async fn send(sender: &Sender, allocation: AllocationId, size: usize, gauge: &Gauge, sent: &AtomicU64) -> Result<()> {
    let message = ToRelay::Data { allocation, packet: packet(size) };
    let mut moved = (0, tokio::time::Instant::now());
    while !gauge.stop.load(Ordering::Relaxed) {
        let (out, back) = (sent.load(Ordering::Relaxed), gauge.packets.load(Ordering::Relaxed));
        if back != moved.0 {
            moved = (back, tokio::time::Instant::now());
        } else if moved.1.elapsed() > STALLED {
            sent.store(back, Ordering::Relaxed);
            moved.1 = tokio::time::Instant::now();
        }
        let room = WINDOW.saturating_sub(out.saturating_sub(back));
        for _ in 0..room {
            sender.send(&message).await?;
        }
        sent.fetch_add(room, Ordering::Relaxed);
        // Its own writer works on the same thread.
        tokio::task::yield_now().await;
        if room == 0 {
            std::thread::yield_now();
        }
    }
    Ok(())
}

async fn receive(mut receiver: Receiver, gauge: &Gauge) -> Result<()> {
    while !gauge.stop.load(Ordering::Relaxed) {
        let mut packets = Packets::default();
        let heard = tokio::time::timeout(Duration::from_millis(100), receiver.hear(&mut packets)).await;
        match heard {
            Ok(Ok(Some(Heard::Packets))) => drop(gauge.packets.fetch_add(packets.len() as u64, Ordering::Relaxed)),
            Ok(Ok(Some(Heard::Message(_)))) | Err(_) => {}
            Ok(ended) => bail!("the channel has ended: {ended:?}"),
        }
    }
    Ok(())
}
