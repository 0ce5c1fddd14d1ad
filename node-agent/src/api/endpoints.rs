//! Which addresses of the API server to try, and in which order.

use crate::args::HostPort;
use serde::{Deserialize, Serialize};

/// Addresses that are tried and kept: a highly available control plane has three to seven.
pub const MAX_ENDPOINTS: usize = 8;

/// The addresses that once worked, newest first; the cached object `api`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Newest first.
    pub endpoints: Vec<HostPort>,
}

impl Remembered {
    /// Puts the address that works now first. Whether that changed anything.
    pub fn worked(&mut self, endpoint: &HostPort) -> bool {
        if self.endpoints.first() == Some(endpoint) {
            return false;
        }
        self.endpoints.retain(|e| e != endpoint);
        self.endpoints.insert(0, endpoint.clone());
        self.endpoints.truncate(MAX_ENDPOINTS);
        true
    }
}

/// The order of attempts: what was configured, and among that what worked last; then what worked before and is no longer
/// configured, since a wrong new setting must not cut a node off.
pub fn order(configured: &[HostPort], remembered: &Remembered) -> Vec<HostPort> {
    let was_good = |e: &&HostPort| remembered.endpoints.contains(e);
    let last = remembered.endpoints.iter().find(|e| configured.contains(e));
    let good = configured.iter().filter(was_good);
    let all = last.into_iter().chain(good).chain(configured).chain(&remembered.endpoints);
    let mut ordered: Vec<HostPort> = Vec::new();
    for endpoint in all {
        if !ordered.contains(endpoint) {
            ordered.push(endpoint.clone());
        }
    }
    ordered.truncate(MAX_ENDPOINTS);
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<HostPort> {
        names.iter().map(|n| HostPort { host: n.to_string(), port: 6443 }).collect()
    }

    #[test]
    fn what_worked_last_comes_first_and_what_is_no_longer_configured_last() {
        let cases: [(&[&str], &[&str], &[&str]); 5] = [
            (&["a", "b", "c"], &[], &["a", "b", "c"]),
            (&["a", "b", "c"], &["c", "b"], &["c", "b", "a"]),
            (&["new"], &["old"], &["new", "old"]),
            (&[], &["old", "older"], &["old", "older"]),
            (&["a", "a"], &["a"], &["a"]),
        ];
        for (configured, remembered, expected) in cases {
            let remembered = Remembered { endpoints: list(remembered) };
            assert_eq!(order(&list(configured), &remembered), list(expected));
        }
    }

    #[test]
    fn the_memory_is_bounded_and_changes_only_when_another_address_works() {
        let mut remembered = Remembered::default();
        for n in 0..20 {
            assert!(remembered.worked(&list(&[&format!("h{n}")])[0]));
        }
        assert_eq!(remembered.endpoints.len(), MAX_ENDPOINTS);
        assert!(!remembered.worked(&list(&["h19"])[0]));
    }
}
