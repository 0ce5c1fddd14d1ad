//! Which datagrams can leave as segments of one message.

use std::ops::Range;

/// Datagrams that lie one after the other in memory, have one owner and one size; the last may be shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run<K> {
    /// Whose they are, or where they go: what tells them from others.
    pub owner: K,
    /// Where they lie.
    pub range: Range<usize>,
    /// Bytes of each.
    pub segment: usize,
}

impl<K: PartialEq> Run<K> {
    /// Adds a datagram behind the others: to the last run, if it can leave with that.
    pub fn append(runs: &mut Vec<Self>, owner: K, range: Range<usize>) {
        match runs.last_mut() {
            Some(last) if last.takes(&owner, &range) => last.range.end = range.end,
            _ => runs.push(Self { owner, segment: range.len(), range }),
        }
    }

    fn takes(&self, owner: &K, next: &Range<usize>) -> bool {
        self.owner == *owner
            && self.range.end == next.start
            && next.len() <= self.segment
            && self.range.len().is_multiple_of(self.segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_with_its_owner_after_a_shorter_datagram_before_a_longer_one_and_at_a_gap() {
        let mut runs = Vec::new();
        for (owner, range) in
            [('a', 0..10), ('a', 10..20), ('a', 20..25), ('a', 25..30), ('b', 30..35), ('b', 35..45), ('b', 50..60)]
        {
            Run::append(&mut runs, owner, range);
        }
        let run = |owner, range, segment| Run { owner, range, segment };
        let expected =
            [run('a', 0..25, 10), run('a', 25..30, 5), run('b', 30..35, 5), run('b', 35..45, 10), run('b', 50..60, 10)];
        assert_eq!(runs, expected);
    }
}
