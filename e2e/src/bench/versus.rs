//! A table of two programs side by side: what each did, and the ratio round by round.

use std::fmt::{self, Display, Formatter};

use crate::bench::{Goal, Spread};

/// One line: the same figure of both, measured in turns.
#[derive(Clone, Debug, PartialEq)]
pub struct Versus {
    what: String,
    unit: &'static str,
    ours: Spread,
    theirs: Spread,
    /// `None` where dividing says nothing.
    ratio: Option<Spread>,
    goal: Goal,
}

impl Versus {
    /// Of measurements in pairs, one of each a round. The ratio is taken within a round, because what else the machine did
    /// in that minute is in both; the goal is the ratio's.
    pub fn new(what: impl Into<String>, unit: &'static str, rounds: &[(f64, f64)], goal: Goal) -> Self {
        let ratio = Spread::of(rounds.iter().map(|(ours, theirs)| ours / theirs));
        Self { ratio: Some(ratio), goal, ..Self::beside(what, unit, rounds) }
    }

    /// The same for figures that are often zero: no ratio and no goal.
    pub fn beside(what: impl Into<String>, unit: &'static str, rounds: &[(f64, f64)]) -> Self {
        Self {
            what: what.into(),
            unit,
            ours: Spread::of(rounds.iter().map(|round| round.0)),
            theirs: Spread::of(rounds.iter().map(|round| round.1)),
            ratio: None,
            goal: Goal::None,
        }
    }
}

impl Display for Versus {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { what, unit, ours, theirs, ratio, goal } = self;
        write!(f, "| {what} | {unit} | {ours} | {theirs} | ")?;
        match ratio {
            Some(ratio) => write!(f, "{ratio} | {} |", goal.cells(ratio)),
            None => write!(f, "- | - |  |"),
        }
    }
}

/// A heading and its table. Every figure is the median of the rounds, with their range.
#[must_use]
pub fn table(heading: &str, [ours, theirs]: [&str; 2], rows: &[Versus]) -> String {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    format!(
        "### {heading}\n\n| Figure | Unit | {ours} | {theirs} | Ratio | Goal | Met |\n|---|---|---:|---:|---:|---|---|\n{lines}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_that_of_each_round_and_not_of_the_medians() {
        let row = Versus::new("speed", "Gbit/s", &[(3.0, 2.0), (1.0, 0.5), (8.0, 4.0)], Goal::Least(1.5));
        assert_eq!(row.to_string(), "| speed | Gbit/s | 3 (1 to 8) | 2 (0.50 to 4) | 2 (1.50 to 2) | >= 1.50 | yes |");
        let row = Versus::beside("lost", "%", &[(0.0, 0.0)]);
        assert_eq!(row.to_string(), "| lost | % | 0 | 0 | - | - |  |");
    }
}
