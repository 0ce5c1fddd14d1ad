//! The file's content.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{IPAM_DIR, NETWORK};

/// The conflist for these podCIDRs, one address of each for every pod. Specification 1.0.0, which every plugin that is still
/// packaged speaks. The same input gives the same bytes.
pub fn conflist(pod_cidrs: &[IpNet], mtu: u16) -> String {
    let ranges: Vec<Value> = pod_cidrs.iter().map(|net| json!([{ "subnet": net.trunc().to_string() }])).collect();
    let mut routes = Vec::new();
    for (v6, everywhere) in [(false, "0.0.0.0/0"), (true, "::/0")] {
        if pod_cidrs.iter().any(|net| net.addr().is_ipv6() == v6) {
            routes.push(json!({ "dst": everywhere }));
        }
    }
    // No `ipMasq`: our own table knows what is inside the mesh, the plugin only knows this node's range.
    let file = json!({
        "cniVersion": "1.0.0",
        "name": NETWORK,
        "plugins": [
            {
                "type": "ptp",
                "mtu": mtu,
                "ipam": { "type": "host-local", "dataDir": IPAM_DIR, "ranges": ranges, "routes": routes },
            },
            { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
        ],
    });
    format!("{file:#}\n")
}
