//! A turn of the path engine: what has arrived goes in, what is due is done, and what the engine wants is carried out.

use super::{NOWHERE, Plane};
use crate::paths::PathTable;
use futures::FutureExt;
use path::{Input, PeerCounters};
use std::time::Instant;
use wgdev::{Datagram, DeviceError, PeerStatus};

/// Engine events handled in one turn; the rest waits for the next, after other inputs had theirs.
const EVENT_BUDGET: usize = 1024;
/// What has arrived of each sort and is taken in before anything that is due: as much as the queues of device and relays hold.
const ARRIVALS: usize = 256;

/// What came to light since the turn before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Our own candidates or NATs changed.
    pub local: bool,
    /// Some path changed.
    pub paths: bool,
    /// Whether the NAT is poisonable was found out, or is not known any more.
    pub nat: bool,
    /// Another program changed peers of the device.
    pub meddled: bool,
    /// A channel to a relay was opened or closed.
    pub channels: bool,
}

impl Plane {
    /// Takes in what has arrived without waiting for more. Whoever calls [`Self::turn`] late must not take its own delay for the
    /// silence of others.
    fn take_in(&mut self, now: Instant) -> Result<(), DeviceError> {
        let lost = |source| DeviceError::Io { doing: "receive", source };
        for _ in 0..ARRIVALS {
            let Some(datagram) = self.device.recv().now_or_never() else { break };
            self.handle_datagram(datagram.map_err(lost)?, now);
        }
        for _ in 0..ARRIVALS {
            let Some(echo) = self.echo.recv().now_or_never() else { break };
            let (from, payload) = echo.map_err(lost)?;
            self.handle_echo(from, &payload, now);
        }
        for _ in 0..ARRIVALS {
            let Some(report) = self.relays.try_next() else { break };
            self.handle_relay(report, now);
        }
        Ok(())
    }

    /// Takes in what has arrived, then does what is due, in the engine's order: timers, events, datagrams, then what relays are told.
    pub async fn turn(&mut self, paths: &mut PathTable, now: Instant) -> Result<News, DeviceError> {
        self.take_in(now)?;
        if self.counters_at <= now && !self.peers.is_empty() {
            self.read_counters(now).await?;
        }
        self.engine.handle_timeout(now);
        for _ in 0..EVENT_BUDGET {
            let Some(event) = self.engine.poll_event() else { break };
            self.carry_out(event, paths, now).await?;
        }
        while let Some(transmit) = self.engine.poll_transmit() {
            let path::Transmit { remote, local, ttl, payload } = transmit;
            let datagram = Datagram { remote, local, payload };
            let sent = match ttl {
                Some(ttl) => self.device.send_with_ttl(datagram, ttl).await,
                None => self.device.send(datagram).await,
            };
            if let Err(e) = sent {
                // An unreachable address is what probing is there to find out.
                tracing::trace!(%remote, error = %e, "a probe was not sent");
            }
        }
        while let Some(path::Control { relay, message }) = self.engine.poll_control() {
            if let Some((relay, news)) = self.relays.send(relay, message, now) {
                self.engine.handle_input(Input::Relay { relay, news }, now);
            }
        }
        Ok(std::mem::take(&mut self.news))
    }

    /// When [`Self::turn`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let counters = (!self.peers.is_empty()).then_some(self.counters_at);
        let engine = self.engine.poll_timeout().map(|(at, _)| at);
        [counters, engine].into_iter().flatten().min()
    }

    /// Hands the device's counters to the engine.
    async fn read_counters(&mut self, now: Instant) -> Result<(), DeviceError> {
        let counters = if self.look_is_due(now) {
            self.look(now).await?.iter().map(PeerStatus::counters).collect()
        } else {
            self.device.counters().await?
        };
        let counters = counters.iter().map(|p| PeerCounters {
            public_key: p.public_key,
            rx_bytes: p.rx_bytes,
            tx_bytes: p.tx_bytes,
            last_handshake: p.last_handshake,
            endpoint: p.endpoint.filter(|endpoint| *endpoint != NOWHERE),
        });
        self.engine.handle_input(Input::Counters(counters.collect()), now);
        self.counters_at = now + self.engine.counters_interval();
        Ok(())
    }
}
