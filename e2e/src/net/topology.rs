//! Builds the internet and attaches sites to it.
//!
//! ```text
//!   node eth0 ── lan [router] wan ── to-NODE [inet] to-out ── eth0 [out: the machine outside the cluster]
//!   node eth0 ─────────────────── to-NODE [inet]                 (a public node)
//! ```

use anyhow::Result;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::net::namespace::Namespace;
use crate::net::router;
use crate::scenario::{Node, OUTSIDE, OUTSIDE_V6, Scenario, Site, gateway4, gateway6};

/// Forwarding routers; rp_filter off, because the shaper hands every packet back on another interface than it came by.
const ROUTER: [&str; 5] = [
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
    "net.ipv6.conf.default.accept_dad=0",
];

/// What every Kubernetes installation guide asks of a node, and rp_filter as systemd leaves it.
const NODE: [&str; 4] = [
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv4.conf.default.rp_filter=2",
    "net.ipv6.conf.default.accept_dad=0",
];

/// The internet's interface towards the machine outside the cluster.
pub const UPLINK_OUTSIDE: &str = "to-out";

/// One end of a link.
struct End<'a> {
    namespace: &'a Namespace,
    device: &'a str,
    v4: Ipv4Net,
    /// Only in dual-stack labs: an address here would give every pair a way around its NAT.
    v6: Option<Ipv6Net>,
}

/// The internet of a lab.
#[must_use]
pub fn internet(lab: &str) -> Namespace {
    Namespace::of(lab, "inet")
}

/// The machine outside the cluster.
#[must_use]
pub fn outside(lab: &str) -> Namespace {
    Namespace::of(lab, "out")
}

/// A node's own namespace.
#[must_use]
pub fn node(lab: &str, node: &str) -> Namespace {
    Namespace::of(lab, &format!("n-{node}"))
}

/// The namespace of the router before a node.
#[must_use]
pub fn router(lab: &str, node: &str) -> Namespace {
    Namespace::of(lab, &format!("r-{node}"))
}

/// The internet's interface towards a site.
#[must_use]
pub fn uplink(node: &str) -> String {
    format!("to-{node}")
}

/// Makes the internet, the outside machine and every site's router.
pub fn create(scenario: &Scenario) -> Result<()> {
    let lab = &scenario.name;
    let (inet, out) = (internet(lab), outside(lab));
    let six = |net| scenario.dual_stack.then_some(net);
    inet.create()?;
    inet.sysctl(&ROUTER)?;
    out.create()?;
    out.sysctl(&["net.ipv6.conf.default.accept_dad=0"])?;
    let far = End { namespace: &out, device: "eth0", v4: OUTSIDE, v6: six(OUTSIDE_V6) };
    let near = End { namespace: &inet, device: UPLINK_OUTSIDE, v4: hop4(OUTSIDE), v6: six(hop6(OUTSIDE_V6)) };
    join(&far, &near)?;
    default_route(&far, near.v4, near.v6)?;
    for site in scenario.nodes.iter().filter(|node| node.has_router()) {
        create_router(scenario, site)?;
    }
    Ok(())
}

/// Makes the link of a virtual machine to its router: the router's end is a TAP device that the machine's emulator opens.
pub fn attach_guest(scenario: &Scenario, spec: &Node) -> Result<Namespace> {
    let router = router(&scenario.name, &spec.name);
    router.ip(&[
        "tuntap add lan mode tap",
        &format!("addr add {} dev lan", gateway4(spec.v4)),
        &format!("link set lan mtu {} up", spec.mtu),
    ])?;
    Ok(router)
}

/// Makes a node's namespace and its link to its router or to the internet.
pub fn attach(scenario: &Scenario, spec: &Node) -> Result<()> {
    let lab = &scenario.name;
    let (inet, own, router) = (internet(lab), node(lab, &spec.name), router(lab, &spec.name));
    own.create()?;
    own.sysctl(&NODE)?;
    let uplink = uplink(&spec.name);
    let (v4, v6) = (gateway4(spec.v4), scenario.dual_stack.then_some(gateway6(spec.v6)));
    let gateway = match spec.has_router() {
        true => End { namespace: &router, device: "lan", v4, v6 },
        false => End { namespace: &inet, device: &uplink, v4, v6 },
    };
    let eth0 = End { namespace: &own, device: "eth0", v4: spec.v4, v6: v6.and(Some(spec.v6)) };
    join(&eth0, &gateway)?;
    for end in [&eth0, &gateway] {
        end.namespace.ip(&[&format!("link set {} mtu {}", end.device, spec.mtu)])?;
    }
    default_route(&eth0, v4, v6)?;
    if spec.name == scenario.control_plane().name && scenario.nodes.iter().any(Node::has_only_tls) {
        own.nft(&router::api_front())?;
    }
    Ok(())
}

/// Gives a node's router other rules, for a site of the same addresses. Connections that it knows stay known.
pub fn change_site(scenario: &Scenario, name: &str, site: &Site) -> Result<()> {
    let spec = scenario.node(name)?;
    let rules = router::ruleset(site, spec.v4.addr(), scenario.api_address());
    router(&scenario.name, name).nft(&format!("flush ruleset\n{rules}"))
}

/// Joins nodes by a switch of their own, besides the internet: each gets this interface with the address.
pub fn switch(scenario: &Scenario, device: &str, ports: &[(&Node, Ipv4Net)]) -> Result<()> {
    let lan = Namespace::of(&scenario.name, "lan");
    lan.create()?;
    lan.ip(&["link add switch type bridge", "link set switch up"])?;
    for (spec, address) in ports {
        let own = node(&scenario.name, &spec.name);
        let port = uplink(&spec.name);
        own.ip(&[
            &format!("link add {device} type veth peer name {port} netns {}", lan.name()),
            &format!("addr add {address} dev {device}"),
            &format!("link set {device} up"),
        ])?;
        lan.ip(&[&format!("link set {port} master switch up")])?;
    }
    Ok(())
}

/// Removes a node's link and namespace, as pulling its plug would.
pub fn detach(scenario: &Scenario, spec: &Node) -> Result<()> {
    let lab = &scenario.name;
    let uplink = uplink(&spec.name);
    let (near, device) = match spec.has_router() {
        true => (router(lab, &spec.name), "lan"),
        false => (internet(lab), uplink.as_str()),
    };
    near.ip(&[&format!("link del {device}")])?;
    node(lab, &spec.name).delete()
}

/// Gives a home another public address and another port shift, as a provider does at night; live mappings die with it.
pub fn change_home(scenario: &Scenario, name: &str, wan: Ipv4Net, shift: u16) -> Result<()> {
    let spec = scenario.node(name)?;
    let Site::Home { wan6, .. } = spec.site.clone() else {
        anyhow::bail!("{name} has no home router");
    };
    let router = router(&scenario.name, name);
    internet(&scenario.name).ip(&[&format!("addr replace {} dev {}", gateway4(wan), uplink(name))])?;
    router.ip(&[
        // Whatever it has now: its provider may have changed it before.
        "addr flush dev wan to 0.0.0.0/0",
        &format!("addr add {wan} dev wan"),
        &format!("route replace default via {}", gateway4(wan).addr()),
    ])?;
    change_site(scenario, name, &Site::Home { wan, wan6, shift })?;
    crate::command::run(&mut router.command("conntrack", &["-F"])).map(drop)
}

fn create_router(scenario: &Scenario, spec: &Node) -> Result<()> {
    let lab = &scenario.name;
    let six = |net| scenario.dual_stack.then_some(net);
    let (inet, own) = (internet(lab), router(lab, &spec.name));
    own.create()?;
    own.sysctl(&ROUTER)?;
    let ((v4, v6), device) = (spec.uplink(), uplink(&spec.name));
    let wan = End { namespace: &own, device: "wan", v4, v6: six(v6) };
    let near = End { namespace: &inet, device: &device, v4: gateway4(v4), v6: six(gateway6(v6)) };
    join(&wan, &near)?;
    default_route(&wan, near.v4, near.v6)?;
    let inner6 = format!("route add {} via {}", spec.v6.trunc(), v6.addr());
    let inner4 = format!("route add {} via {}", spec.v4.trunc(), v4.addr());
    if matches!(spec.site, Site::Firewall { .. }) {
        inet.ip(&[&inner4])?;
    }
    if scenario.dual_stack {
        inet.ip(&[&inner6])?;
    }
    own.nft(&router::ruleset(&spec.site, spec.v4.addr(), scenario.api_address()))
}

fn join(a: &End<'_>, b: &End<'_>) -> Result<()> {
    // The veth pair is made inside the first namespace: the root namespace never sees it.
    let pair = format!("link add {} type veth peer name {} netns {}", a.device, b.device, b.namespace.name());
    a.namespace.ip(&[&pair])?;
    for end in [a, b] {
        let v6 = end.v6.map(|v6| format!("addr add {v6} dev {}", end.device)).unwrap_or_default();
        let (v4, up) = (format!("addr add {} dev {}", end.v4, end.device), format!("link set {} up", end.device));
        end.namespace.ip(&[&v4, &v6, &up])?;
    }
    Ok(())
}

fn default_route(end: &End<'_>, v4: Ipv4Net, v6: Option<Ipv6Net>) -> Result<()> {
    let v6 = v6.map(|v6| format!("route add default via {}", v6.addr())).unwrap_or_default();
    end.namespace.ip(&[&format!("route add default via {}", v4.addr()), &v6])
}

/// The outside machine has the first address of its network, so its gateway is the second.
fn hop4(net: Ipv4Net) -> Ipv4Net {
    Ipv4Net::new_assert((u32::from(net.addr()) + 1).into(), net.prefix_len())
}

fn hop6(net: Ipv6Net) -> Ipv6Net {
    Ipv6Net::new_assert((u128::from(net.addr()) + 1).into(), net.prefix_len())
}
