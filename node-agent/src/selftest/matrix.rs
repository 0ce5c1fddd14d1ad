//! Which pairs are tested, and how the result is shown.

use std::{fmt::Write, net::IpAddr, time::Duration};

/// Up to so many nodes every ordered pair is tested.
const ALL_PAIRS: usize = 10;
/// Above, every node tests so many neighbours of a ring.
const RING: usize = 3;

/// A Pod of the test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its node.
    pub node: String,
    /// Its addresses, one of each family at most.
    pub ips: Vec<IpAddr>,
}

/// One fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Index of who fetched.
    pub from: usize,
    /// Index of the other.
    pub to: usize,
    /// The address that was fetched.
    pub ip: IpAddr,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// How long the last attempt took.
    pub took: Duration,
}

/// The ordered pairs to test, once for each address of the target that the other has a family for.
pub fn pairs(targets: &[Target]) -> Vec<(usize, usize, IpAddr)> {
    let n = targets.len();
    let neighbours = if n <= ALL_PAIRS { n.saturating_sub(1) } else { RING };
    let mut pairs = Vec::new();
    for (from, source) in targets.iter().enumerate() {
        for to in (1..=neighbours).map(|step| (from + step) % n) {
            let same_family = |ip: &&IpAddr| source.ips.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
            pairs.extend(targets[to].ips.iter().filter(same_family).map(|ip| (from, to, *ip)));
        }
    }
    pairs
}

/// A table for few nodes, and every failure in words.
pub fn render(targets: &[Target], cells: &[Cell]) -> String {
    let mut text = String::new();
    if targets.len() <= ALL_PAIRS {
        matrix(&mut text, targets, cells);
    }
    for cell in cells {
        if let Some(failure) = &cell.failure {
            let (from, to) = (&targets[cell.from].node, &targets[cell.to].node);
            // Writing to a String can't fail.
            let _ = writeln!(text, "{from} -> {to} ({}): {failure}", cell.ip);
        }
    }
    text
}

fn matrix(text: &mut String, targets: &[Target], cells: &[Cell]) {
    let width = targets.iter().map(|t| t.node.len()).max().unwrap_or(0).max(9) + 2;
    let _ = write!(text, "{:width$}", "from \\ to");
    for target in targets {
        let _ = write!(text, "{:width$}", target.node);
    }
    text.push('\n');
    for (from, source) in targets.iter().enumerate() {
        let _ = write!(text, "{:width$}", source.node);
        for to in 0..targets.len() {
            let tested: Vec<&Cell> = cells.iter().filter(|c| (c.from, c.to) == (from, to)).collect();
            let shown = match tested.iter().map(|c| c.took).max() {
                None => "-".to_owned(),
                Some(_) if tested.iter().any(|c| c.failure.is_some()) => "FAILED".to_owned(),
                Some(took) => format!("{} ms", took.as_millis()),
            };
            let _ = write!(text, "{shown:width$}");
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(n: usize, dual: bool) -> Vec<Target> {
        let v6 = |i: usize| dual.then(|| format!("fd00::{i:x}").parse().unwrap());
        let ips = |i: usize| [format!("10.0.0.{i}").parse().unwrap()].into_iter().chain(v6(i)).collect();
        (0..n).map(|i| Target { node: format!("n{i}"), ips: ips(i) }).collect()
    }

    #[test]
    fn small_meshes_test_every_ordered_pair_and_large_ones_a_ring() {
        for (nodes, dual, expected) in
            [(1, false, 0), (2, false, 2), (5, false, 20), (5, true, 40), (10, false, 90), (11, false, 33)]
        {
            let pairs = pairs(&targets(nodes, dual));
            assert_eq!(pairs.len(), expected, "{nodes} {dual}");
            assert!(pairs.iter().all(|(from, to, _)| from != to));
        }
    }

    #[test]
    fn a_pod_without_ipv6_is_not_asked_for_it() {
        let mixed = [targets(1, false), targets(2, true)].concat();
        assert!(pairs(&mixed).iter().all(|(from, _, ip)| ip.is_ipv4() || *from != 0));
    }

    #[test]
    fn failures_are_in_the_table_and_in_words() {
        let targets = targets(2, false);
        let cell = |from, to, failure: Option<&str>| Cell {
            from,
            to,
            ip: targets[to].ips[0],
            failure: failure.map(Into::into),
            took: Duration::from_millis(7),
        };
        let text = render(&targets, &[cell(0, 1, None), cell(1, 0, Some("no answer"))]);
        assert!(text.contains("7 ms") && text.contains("FAILED"), "{text}");
        assert!(text.contains("n1 -> n0 (10.0.0.0): no answer"), "{text}");
    }
}
