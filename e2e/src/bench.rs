//! `make bench`: figures of the built programs, each beside its goal, as a Markdown table on standard output.
//!
//! Speed is only told as a ratio: the same stream through Warren's device, a bare gotatun and wireguard-go, in turns within one run on one
//! machine, because a machine's own speed differs more than the programs do. Times, sizes and counts come from a lab with 40 ms
//! of round trip. Nothing is written into the checkout except build output.

pub mod cluster;
pub mod connect;
pub mod datagrams;
pub mod echo;
pub mod forward;
pub mod idle;
pub mod machine;
pub mod pair;
pub mod profile;
pub mod program;
pub mod relayed;
pub mod restart;
pub mod scale;
pub mod stream;
pub mod throughput;
pub mod usage;
pub mod userspace;
pub mod versus;

use std::fmt::{self, Display, Formatter};

/// The lab, its namespaces and its lock have this name; `warren-lab down --name bench` removes what a killed run left.
pub const LAB: &str = "bench";

/// Repeated measurements of one figure; `INFINITY` stands for "never within the deadline".
#[derive(Clone, Debug, PartialEq)]
pub struct Spread(Vec<f64>);

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Nothing was promised.
    None,
    /// The median is to be at most this.
    Most(f64),
    /// The median is to be at least this.
    Least(f64),
    /// Of twenty measurements nineteen are to be at most this.
    Mostly(f64),
    /// No single measurement may be above this.
    Limit(f64),
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    what: String,
    unit: &'static str,
    spread: Spread,
    goal: Goal,
}

impl Spread {
    /// Of these measurements; none at all counts as one that never ended.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        if values.is_empty() {
            values.push(f64::INFINITY);
        }
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The one in the middle.
    #[must_use]
    pub fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        if self.0.len() % 2 == 1 { self.0[middle] } else { f64::midpoint(self.0[middle - 1], self.0[middle]) }
    }

    /// The one that nineteen of twenty are not above.
    fn percentile_95(&self) -> f64 {
        self.0[(self.0.len() * 19).div_ceil(20) - 1]
    }

    fn least(&self) -> f64 {
        self.0[0]
    }

    fn most(&self) -> f64 {
        self.0[self.0.len() - 1]
    }
}

impl Display for Spread {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", number(self.median()))?;
        if self.0.len() > 1 {
            write!(f, " ({} to {})", number(self.least()), number(self.most()))?;
        }
        Ok(())
    }
}

impl Goal {
    fn is_met(self, spread: &Spread) -> Option<bool> {
        match self {
            Self::None => None,
            Self::Most(most) => Some(spread.median() <= most),
            Self::Least(least) => Some(spread.median() >= least),
            Self::Mostly(most) => Some(spread.percentile_95() <= most),
            Self::Limit(limit) => Some(spread.most() <= limit),
        }
    }

    /// The last two cells of a line: the goal, and whether it was met.
    fn cells(self, spread: &Spread) -> String {
        let met = self.is_met(spread).map_or("", |met| if met { "yes" } else { "**no**" });
        format!("{self} | {met}")
    }
}

impl Display for Goal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(f, "-"),
            Self::Most(most) => write!(f, "<= {}", number(*most)),
            Self::Least(least) => write!(f, ">= {}", number(*least)),
            Self::Mostly(most) => write!(f, "<= {}, p95", number(*most)),
            Self::Limit(limit) => write!(f, "<= {}, each", number(*limit)),
        }
    }
}

impl Row {
    /// A figure without a goal.
    pub fn new(what: impl Into<String>, unit: &'static str, spread: Spread) -> Self {
        Self { what: what.into(), unit, spread, goal: Goal::None }
    }

    /// The same with a goal.
    #[must_use]
    pub fn goal(self, goal: Goal) -> Self {
        Self { goal, ..self }
    }
}

impl Display for Row {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "| {} | {} | {} | {} |", self.what, self.spread, self.unit, self.goal.cells(&self.spread))
    }
}

/// A heading and its table.
#[must_use]
pub fn table(heading: &str, rows: &[Row]) -> String {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    format!("### {heading}\n\n| Figure | Median (range) | Unit | Goal | Met |\n|---|---:|---|---:|---|\n{lines}")
}

/// Three digits are more than any of these figures is good for.
fn number(value: f64) -> String {
    match value.abs() {
        _ if value.is_infinite() => "never".into(),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_judged_by_the_median_and_a_limit_by_the_worst() {
        let spread = Spread::of([0.5, 3.5, 0.7]);
        assert_eq!((spread.median(), Spread::of([1.0, 2.0]).median()), (0.7, 1.5));
        assert_eq!(Goal::Most(1.0).is_met(&spread), Some(true));
        assert_eq!(Goal::Limit(3.0).is_met(&spread), Some(false));
        assert_eq!((Goal::Least(0.7).is_met(&spread), Goal::Least(0.71).is_met(&spread)), (Some(true), Some(false)));
        assert_eq!(Goal::None.is_met(&spread), None);
        let twenty = Spread::of((1..=20).map(f64::from));
        assert_eq!((Goal::Mostly(19.0).is_met(&twenty), Goal::Mostly(18.9).is_met(&twenty)), (Some(true), Some(false)));
        assert_eq!((Goal::Mostly(3.5).is_met(&spread), Goal::Mostly(3.4).is_met(&spread)), (Some(true), Some(false)));
    }

    #[test]
    fn what_never_happened_is_said_and_missed() {
        let row = Row::new("start", "s", Spread::of([])).goal(Goal::Most(1.0));
        assert_eq!(row.to_string(), "| start | never | s | <= 1 | **no** |");
        let row = Row::new("size", "MiB", Spread::of([7.25, 12.0, 9.0])).goal(Goal::Most(15.0));
        assert_eq!(row.to_string(), "| size | 9 (7.25 to 12) | MiB | <= 15 | yes |");
    }
}
