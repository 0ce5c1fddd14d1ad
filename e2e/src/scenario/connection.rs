//! How two sites are connected once everything was tried: what the demo waits for.

use anyhow::Result;

use super::{Scenario, Site};

/// How a node reaches another in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Without anybody between them.
    Direct,
    /// By a relay, to which this node's packets go by UDP.
    Relayed,
    /// By a relay, inside this node's channel to it.
    Tls,
}

impl Scenario {
    /// How `from` reaches `to` in the end.
    ///
    /// # Errors
    /// When the lab has no such nodes.
    pub fn connection(&self, from: &str, to: &str) -> Result<Connection> {
        let (from, to) = (self.node(from)?, self.node(to)?);
        Ok(match (&from.site, &to.site) {
            (Site::OnlyTls { .. }, _) => Connection::Tls,
            (_, Site::OnlyTls { .. }) => Connection::Relayed,
            (one, other) if meet(one, other) && meet(other, one) => Connection::Direct,
            _ => Connection::Relayed,
        })
    }
}

/// Whether `one` can tell from which port `other` will come, or need not. Both let UDP out.
fn meet(one: &Site, other: &Site) -> bool {
    let lets_all_in = matches!(one, Site::Public | Site::OneToOne { .. });
    lets_all_in || !matches!(other, Site::Hard { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_has_every_sort_of_connection() {
        let demo = Scenario::demo("t");
        let of = |from, to| demo.connection(from, to).unwrap();
        for direct in [("home-a", "plain"), ("plain", "fw"), ("plain", "cp"), ("hard", "pub"), ("pub", "hard")] {
            assert_eq!(of(direct.0, direct.1), Connection::Direct, "{direct:?}");
        }
        for relayed in [("hard", "home-a"), ("plain", "hard"), ("fw", "hard"), ("pub", "tls"), ("hard", "tls")] {
            assert_eq!(of(relayed.0, relayed.1), Connection::Relayed, "{relayed:?}");
        }
        for to in ["cp", "plain", "hard"] {
            assert_eq!(of("tls", to), Connection::Tls, "{to}");
        }
    }

    #[test]
    fn two_nats_that_draw_their_ports_are_relayed() {
        assert_eq!(Scenario::relayed("t").connection("hard-a", "hard-b").unwrap(), Connection::Relayed);
    }
}
