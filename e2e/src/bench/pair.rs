//! Two userspace WireGuards of one kind, one at each end of a cable, connected.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::bench::echo::{INTERVAL, Stream};
use crate::bench::program::{End, Kind, PORT, Running, control};
use crate::bench::usage::{self, Usage};
use crate::bench::{LAB, Spread};
use crate::net::namespace::Namespace;
use crate::progress::Progress;
use crate::{teardown, wait};

/// As Warren's device has it on Ethernet.
const MTU: u16 = 1420;
/// Pings on the idle pair.
const IDLE_PINGS: usize = 20;
/// The addresses inside the tunnel.
pub const MESH: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
const UNDERLAY: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
/// A handshake takes a round trip; the rest is the machine's.
pub const CONNECTED: Duration = Duration::from_secs(30);

/// The kinds that could be built here. Without Warren's own there is nothing to measure; without another there is less.
pub fn build(kinds: &[Kind], progress: &Progress) -> Result<Vec<(Kind, PathBuf)>> {
    let mut programs = Vec::new();
    for kind in kinds {
        match progress.step(&format!("build {}", kind.name()), || kind.build()) {
            Ok(program) => programs.push((*kind, program)),
            Err(error) if *kind == Kind::Warren => return Err(error),
            Err(error) => progress.say(&format!("without {}: {error:#}", kind.name())),
        }
    }
    Ok(programs)
}

/// Two namespaces and the cable between them, for as long as `measure` takes.
pub fn with_cable<T>(measure: impl FnOnce(&[End; 2]) -> Result<T>) -> Result<T> {
    teardown::down(LAB)?;
    let result = cable().and_then(|ends| measure(&ends));
    teardown::down(LAB)?;
    result
}

fn cable() -> Result<[End; 2]> {
    let [a, b] = ["pair-a", "pair-b"].map(|part| Namespace::of(LAB, part));
    a.create()?;
    b.create()?;
    a.ip(&[&format!("link add eth0 type veth peer name eth0 netns {}", b.name())])?;
    for (namespace, address) in [(&a, UNDERLAY[0]), (&b, UNDERLAY[1])] {
        namespace.ip(&[&format!("addr add {address}/24 dev eth0"), "link set eth0 up"])?;
    }
    let end = |index: usize, namespace| End {
        index,
        namespace,
        device: format!("wb-{}", ["a", "b"][index]),
        allowed: format!("{}/32", MESH[1 - index]),
        endpoint: format!("{}:{PORT}", UNDERLAY[1 - index]),
    };
    Ok([end(0, a), end(1, b)])
}

/// A connected pair.
#[derive(Debug)]
pub struct Pair<'a> {
    /// Where the two are.
    pub ends: &'a [End; 2],
    processes: Vec<Running>,
    /// Median round trip while nothing else went through it, in milliseconds.
    pub idle_ping: f64,
}

impl<'a> Pair<'a> {
    /// Connects a pair that has `peers` peers at each end, of which all but one stay idle, for as long as `measure` takes.
    pub fn with<T>(
        ends: &'a [End; 2],
        (kind, program): (Kind, &Path),
        peers: usize,
        measure: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        let result = Self::connect(ends, kind, program, peers).and_then(|pair| measure(&pair));
        for end in ends {
            // Warren's interface outlives its process on purpose.
            let _ = end.namespace.ip(&[&format!("link del {}", end.device)]);
            let _ = std::fs::remove_file(control(&end.device));
        }
        result
    }

    fn connect(ends: &'a [End; 2], kind: Kind, program: &Path, peers: usize) -> Result<Self> {
        let start = |end| Running::start(kind, program, end, peers - 1);
        let processes = ends.iter().map(start).collect::<Result<Vec<_>>>()?;
        for (end, address) in ends.iter().zip(MESH) {
            let link = format!("link set {} mtu {MTU} up", end.device);
            end.namespace.ip(&[&link, &format!("addr add {address}/24 dev {}", end.device)])?;
        }
        let mut pair = Self { ends, processes, idle_ping: f64::INFINITY };
        // The first pings wait for the handshake, so they are not measured.
        pair.echoes()?;
        pair.idle_ping = Spread::of(pair.echoes()?.stop().round_trips).median();
        Ok(pair)
    }

    fn echoes(&self) -> Result<Stream> {
        let pings = self.ping()?;
        wait::until("echoes through the idle pair", CONNECTED, || {
            match pings.echoes_of_last(IDLE_PINGS, Duration::ZERO) {
                echoes if echoes == IDLE_PINGS => Ok(()),
                echoes => Err(format!("{echoes} of the last {IDLE_PINGS} pings had an echo")),
            }
        })?;
        Ok(pings)
    }

    /// Starts to ping from the first end to the second.
    pub fn ping(&self) -> Result<Stream> {
        Stream::start(&self.ends[0].namespace, MESH[1], INTERVAL)
    }

    /// The two processes.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.processes.iter().map(Running::pid).collect()
    }

    /// What both processes have used, in one figure each: the sum of CPU, the larger memory.
    pub fn usage(&self) -> Result<Usage> {
        self.processes.iter().try_fold(Usage::default(), |sum, process| {
            let one = usage::of(process.pid())?;
            let file_mib = sum.file_mib.max(one.file_mib);
            Ok(Usage { cpu: sum.cpu + one.cpu, rss_mib: sum.rss_mib.max(one.rss_mib), file_mib })
        })
    }
}
