//! Which pairs of sites connect without help: simultaneous probes to published addresses, and answers to where probes
//! come from. Derived from RFC 4787's definitions alone, it knows nothing of the engine.

use crate::middlebox::{Filtering, Mapping};
use crate::site::Site;

/// What a site looks like from the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    /// Whether peers meet the port that was published.
    easy: bool,
    filtering: Filtering,
}

/// Whether two sites must find a direct path. If not, they must say so. A poisonable one needs signalling for it.
#[must_use]
pub fn connects(a: Site, b: Site) -> bool {
    match (view(a), view(b)) {
        // One that gets through shows the other where to send, and opens its own filter to the answer.
        (Some(a), Some(b)) => reaches(a, b) || reaches(b, a),
        _ => false,
    }
}

fn view(site: Site) -> Option<View> {
    let view =
        |mapping, filtering| View { easy: matches!(mapping, Mapping::None | Mapping::EndpointIndependent), filtering };
    Some(match site {
        Site::Open => view(Mapping::None, Filtering::EndpointIndependent),
        Site::Firewalled => view(Mapping::None, Filtering::AddressAndPortDependent),
        Site::Home(mapping, filtering) => view(mapping, filtering),
        // The provider's filter stands before the home's and is the stricter one.
        Site::Cgnat(mapping, _) => view(mapping, Filtering::AddressAndPortDependent),
        // If it sends first, which ordered signals make sure of.
        Site::Poisonable => view(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent),
        Site::UdpBlocked => return None,
    })
}

/// Whether what `from` sends gets to `to`. The published port of a hard NAT is stale, so only easy sites are found. A
/// port-restricted filter admits only a port that was sent to, and one that was not published is never sent to before it
/// was admitted.
fn reaches(from: View, to: View) -> bool {
    to.easy && (from.easy || to.filtering != Filtering::AddressAndPortDependent)
}
