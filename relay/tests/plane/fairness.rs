//! Deficit round robin over ports.

use proptest::prelude::*;
use relay::server::plane::Schedule;

/// What one read yields at most: eight messages of 64 KiB.
const LARGEST_READ: usize = 8 * 65_536;

#[test]
fn nobody_waits_when_nobody_is_ready() {
    let mut schedule = Schedule::new(4);
    assert_eq!(schedule.turn(), None);
    schedule.ready(2);
    schedule.ready(2);
    assert_eq!(schedule.turn(), Some(2));
    schedule.served(2, 1, 100, true);
    assert_eq!(schedule.turn(), None);
    schedule.ready(4);
    assert_eq!(schedule.turn(), None, "there is no such port");
}

#[test]
fn a_port_alone_is_served_without_end() {
    let mut schedule = Schedule::new(64);
    schedule.ready(63);
    for _ in 0..1000 {
        assert_eq!(schedule.turn(), Some(63));
        schedule.served(63, 512, LARGEST_READ, false);
    }
}

#[test]
fn a_port_that_was_idle_has_saved_nothing_up() {
    let mut schedule = Schedule::new(2);
    schedule.ready(0);
    for _ in 0..1000 {
        assert_eq!(schedule.turn(), Some(0));
        schedule.served(0, 1, 100, true);
        schedule.ready(0);
    }
    schedule.ready(1);
    let mut served = [0; 2];
    for _ in 0..100 {
        let port = schedule.turn().unwrap();
        schedule.served(port, 1, 65_536, false);
        served[usize::from(port)] += 1;
    }
    assert!(served[0] <= 51 && served[1] >= 49, "{served:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    /// However a flood is made up, ports that always have something to read get the same share, but for one read and one quantum.
    #[test]
    fn busy_ports_share_alike(reads in prop::collection::vec((1usize..512, 1usize..LARGEST_READ), 1..20), ports in 2u16..16) {
        let mut schedule = Schedule::new(ports);
        (0..ports).for_each(|port| schedule.ready(port));
        let mut cost = vec![0usize; usize::from(ports)];
        for _ in 0..2000 {
            let port = usize::from(schedule.turn().unwrap());
            // Each port has a habit of its own.
            let (datagrams, bytes) = reads[port % reads.len()];
            schedule.served(port as u16, datagrams, bytes, false);
            cost[port] += datagrams * 256 + bytes;
        }
        let (least, most) = (cost.iter().min().unwrap(), cost.iter().max().unwrap());
        prop_assert!(most - least <= 2 * (LARGEST_READ + 512 * 256 + 65_536), "{least} to {most}");
    }

    /// In any stretch that is long against one read each port has its part, give or take a fifth.
    #[test]
    fn each_flooded_port_gets_its_part_give_or_take_a_fifth(
        reads in prop::collection::vec((1usize..512, 1usize..LARGEST_READ), 2..20),
        ports in 2u16..16,
    ) {
        let mut schedule = Schedule::new(ports);
        (0..ports).for_each(|port| schedule.ready(port));
        let mut cost = vec![0usize; usize::from(ports)];
        let enough = usize::from(ports) * 20 * (LARGEST_READ + 512 * 256);
        while cost.iter().sum::<usize>() < enough {
            let port = usize::from(schedule.turn().unwrap());
            let (datagrams, bytes) = reads[port % reads.len()];
            schedule.served(port as u16, datagrams, bytes, false);
            cost[port] += datagrams * 256 + bytes;
        }
        let part = cost.iter().sum::<usize>() / usize::from(ports);
        for of_port in &cost {
            prop_assert!(of_port.abs_diff(part) * 5 <= part, "{of_port} of {part}");
        }
    }
}
