//! Figures of repeated measurements.

/// Median, least and most.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    /// Of the measurements there are; not a number when there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { median: at(values.len() / 2), least: at(0), most: at(values.len().saturating_sub(1)) }
    }

    /// With so many decimals, as a cell of a table.
    pub fn cell(self, decimals: usize) -> String {
        let Self { median, least, most } = self;
        format!("{median:.decimals$} ({least:.decimals$} to {most:.decimals$})")
    }
}

/// The number behind `--NAME`, or what it is without that. Cargo adds arguments of its own, so others are no error.
pub fn option(name: &str, default: u64) -> u64 {
    let mut args = std::env::args();
    args.find(|arg| arg.strip_prefix("--") == Some(name))
        .and_then(|_| args.next())
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("--{name} takes a number, not {text:?}")))
}
