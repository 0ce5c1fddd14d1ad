//! The TCP port by which others shall reach a relay on this node. A relay has no privilege and listens on a high port; what lets
//! nothing but web traffic out lets 443 out. So the agent leads 443 there, as long as it is nobody else's.

use crate::net::Redirect;

/// What becomes of that port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsPort {
    /// There is nothing to do: no relay here that listens for TCP, none wanted, or the relay has that port itself.
    #[default]
    Unwanted,
    /// It leads to the relay.
    Redirected(Redirect),
    /// Another program listens there: it keeps it.
    Taken(Redirect),
}

impl TlsPort {
    /// Decides. `wanted` is the port for others, `relay` the one that the relay here listens on; `listens` says whether a program of this
    /// machine listens on a port.
    pub fn new(wanted: Option<u16>, relay: Option<u16>, listens: impl FnOnce(u16) -> bool) -> Self {
        match (wanted, relay) {
            (Some(from), Some(to)) if from != to => {
                let redirect = Redirect { from, to };
                if listens(from) { Self::Taken(redirect) } else { Self::Redirected(redirect) }
            }
            _ => Self::Unwanted,
        }
    }

    /// What the host network shall do.
    pub fn redirect(self) -> Option<Redirect> {
        match self {
            Self::Redirected(redirect) => Some(redirect),
            Self::Unwanted | Self::Taken(_) => None,
        }
    }

    /// Why nothing is redirected, if it should be.
    pub fn problem(self) -> Option<String> {
        let Self::Taken(Redirect { from, to }) = self else { return None };
        Some(format!(
            "expected TCP {from} of this node to be free, so that it leads to the relay on {to}, found a program that listens there. It \
             keeps the port, and nodes that get out to {from} only can't use this relay; move the program, or have the relay on another node"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_leads_to_the_relay_unless_somebody_has_it() {
        let redirect = Redirect { from: 443, to: 8443 };
        let decide = |wanted, relay, taken| TlsPort::new(wanted, relay, |port| port == 443 && taken);
        assert_eq!(decide(Some(443), Some(8443), false), TlsPort::Redirected(redirect));
        assert_eq!(decide(Some(443), Some(8443), true), TlsPort::Taken(redirect));
        assert_eq!(decide(Some(443), None, true), TlsPort::Unwanted, "no relay here");
        assert_eq!(decide(None, Some(8443), true), TlsPort::Unwanted, "switched off");
        assert_eq!(decide(Some(443), Some(443), true), TlsPort::Unwanted, "it is the relay that listens");
        assert_eq!(TlsPort::Taken(redirect).redirect(), None);
        assert!(TlsPort::Redirected(redirect).problem().is_none() && TlsPort::Taken(redirect).problem().is_some());
    }
}
