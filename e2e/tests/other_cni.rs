//! Warren beside a CNI that was there first: only the mesh is added, nothing of the CNI is touched, and no pod loses a packet when
//! Warren comes, works and goes. First a plain bridge with static routes, then flannel's host-gw.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::node;
use e2e::command::{command, run};
use e2e::images::{Set, workspace};
use e2e::lab::Lab;
use e2e::net::topology;
use e2e::outage::{SOON, on, reach};
use e2e::process::Process;
use e2e::removal::{self, Snapshot};
use e2e::scenario::{Node, Scenario};
use e2e::state::write;
use e2e::traffic::throughout;
use e2e::workload::{self, check_on_host};
use e2e::{harness, wait, warren};
use ipnet::Ipv4Net;
use serde_json::json;

/// The nodes' interface on the network that the CNI uses.
const DEVICE: &str = "eth1";
/// The addresses of the two nodes there.
const ADDRESSES: [&str; 2] = ["192.168.77.1/24", "192.168.77.2/24"];
/// What Warren has nothing to do with here, under whatever name: the folder of CNI configurations, and the pods' ranges.
const OF_THE_CNI: [&str; 2] = ["/etc/cni", "10.244."];
/// Namespaces, pods and kube-proxy's rules settle within half a minute.
const SETTLED: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    harness::main(
        Scenario::pair("t-beside"),
        Set::All,
        &[
            ("a_bridge_with_static_routes_carries_the_pods", a_bridge_with_static_routes),
            ("warren_comes_and_goes_beside_the_bridge", warren_comes_and_goes),
            ("flannel_takes_the_routes_over", flannel_takes_over),
            ("warren_comes_and_goes_beside_flannel", warren_comes_and_goes),
        ],
    )
}

/// What a small cluster without a vendor's CNI has: a bridge on every node, and a route to each of the others.
fn a_bridge_with_static_routes(lab: &Lab) -> Result<()> {
    let places = places(lab)?;
    let ports: Vec<(&Node, Ipv4Net)> = places.iter().map(|place| (place.node, place.address)).collect();
    topology::switch(lab.scenario(), DEVICE, &ports)?;
    for place in &places {
        let path = lab.state().node(&place.node.name).join("disk/etc/cni/net.d/10-bridge.conflist");
        write(&path, bridge(&place.pods).to_string())?;
    }
    change_routes(lab, &places, "add")?;
    workload::deploy(lab)?;
    wait::until("every pod to reach every other", SOON, || {
        let pods = workload::pods(lab).map_err(|error| format!("{error:#}"))?;
        let failures = workload::failures(&workload::matrix(lab, &pods, Duration::from_secs(3)));
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    })
}

/// A node's place in the CNI's network.
struct Place<'a> {
    node: &'a Node,
    address: Ipv4Net,
    pods: String,
}

fn places(lab: &Lab) -> Result<Vec<Place<'_>>> {
    let place = |(node, address): (&'_ Node, &str)| -> Result<_> {
        let path = ["get", "node", &node.name];
        let pods = wait::until(&format!("a pod range of {}", node.name), SOON, || {
            let object = lab.kubectl_json(&path).map_err(|error| format!("{error:#}"))?;
            object["spec"]["podCIDR"].as_str().map(String::from).ok_or_else(|| "it has none".into())
        })?;
        Ok((address.parse().context("an address")?, pods))
    };
    let nodes = lab.scenario().nodes.iter();
    nodes
        .zip(ADDRESSES)
        .map(|(node, address)| place((node, address)).map(|(address, pods)| Place { node, address, pods }))
        .collect()
}

fn bridge(pods: &str) -> serde_json::Value {
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": pods}]], "routes": [{"dst": "0.0.0.0/0"}]});
    json!({"cniVersion": "1.0.0", "name": "plain", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": ipam},
    ]})
}

fn change_routes(lab: &Lab, places: &[Place<'_>], verb: &str) -> Result<()> {
    for here in places {
        for there in places.iter().filter(|there| there.node != here.node) {
            let route = format!("route {verb} {} via {} dev {DEVICE}", there.pods, there.address.addr());
            node::namespace(lab, here.node).ip(&[&route])?;
        }
    }
    Ok(())
}

/// The daemon as its DaemonSet runs it, on every node; routes are its own from here on.
fn flannel_takes_over(lab: &Lab) -> Result<()> {
    let program = run(&mut command(workspace().join("e2e/tools/flannel.sh"), [""; 0]))?.trim().to_owned();
    let config = lab.state().dir().join("flannel.json");
    write(&config, json!({"Network": lab.scenario().pod_cidrs()[0], "Backend": {"Type": "host-gw"}}).to_string())?;
    let places = places(lab)?;
    change_routes(lab, &places, "del")?;
    for place in &places {
        let kubeconfig = format!("--kubeconfig-file={}", lab.state().kubeconfig().display());
        let config = format!("--net-config-path={}", config.display());
        let device = format!("--iface={DEVICE}");
        let mut flannel =
            node::inside(lab, place.node, &program, &["--kube-subnet-mgr", &kubeconfig, &config, &device])?;
        flannel.env("NODE_NAME", &place.node.name);
        Process::start(lab.state(), &format!("{}-flanneld", place.node.name), &mut flannel)?;
    }
    for here in &places {
        wait::until(&format!("flannel's routes on {}", here.node.name), SOON, || {
            let routes = lab.exec(&here.node.name, "ip", &["route"]).map_err(|error| format!("{error:#}"))?;
            let mut others = places.iter().filter(|there| there.node != here.node);
            let has = others.all(|there| routes.contains(&format!("{} via {}", there.pods, there.address.addr())));
            if has { Ok(()) } else { Err(routes) }
        })?;
        // It makes its rules besides, and the node is compared with what it is now.
        wait::until(&format!("flannel's rules on {}", here.node.name), SOON, || {
            let chain = ["-S", "FLANNEL-FWD"];
            let rules = lab.exec(&here.node.name, "iptables", &chain).map_err(|error| format!("{error:#}"))?;
            // The chain itself, and a rule for each direction.
            if rules.lines().count() >= 3 { Ok(()) } else { Err(rules) }
        })?;
    }
    Ok(())
}

fn warren_comes_and_goes(lab: &Lab) -> Result<()> {
    let pods = workload::pods(lab)?;
    settled(lab, &pods)?;
    let before = removal::take_all(lab)?;
    let nodes: Vec<&str> = lab.scenario().nodes.iter().map(|node| node.name.as_str()).collect();
    let ((), seen) = throughout(lab, &pods, (on(&pods, nodes[0])?, on(&pods, nodes[1])?), || {
        warren::install_with(lab, &["--set", "cni.mode=none"])?;
        warren::wait_ready(lab)?;
        the_mesh_works(lab)?;
        nothing_was_touched(&before, &removal::take_all(lab)?)?;
        warren::uninstall(lab)?;
        removal::clean(lab, false).map(drop)
    })?;
    eprintln!("           {seen}");
    ensure!(seen.totals().1 == 0, "pods lost packets to Warren: {:?}", seen.pings);
    ensure!(workload::pods(lab)? == pods, "pods were replaced");
    wait::until("the nodes to be as they were", SETTLED, || {
        let changes = removal::changes(&before, &removal::take_all(lab).map_err(|error| format!("{error:#}"))?);
        if changes.is_empty() { Ok(()) } else { Err(changes) }
    })
}

/// Waits until kube-proxy knows every pod of the Service, on every node: its rules are compared too.
fn settled(lab: &Lab, pods: &[workload::Pod]) -> Result<()> {
    for node in &lab.scenario().nodes {
        wait::until(&format!("kube-proxy of {} to know all pods", node.name), SOON, || {
            let rules = lab.exec(&node.name, "nft", &["list", "ruleset"]).map_err(|error| format!("{error:#}"))?;
            let lacks = pods.iter().find(|pod| !rules.contains(&format!("dnat to {}", pod.socket())));
            lacks.map_or(Ok(()), |pod| Err(format!("it does not know {pod:?}")))
        })?;
    }
    Ok(())
}

/// Every node, and every pod, reaches every other node by its address in the mesh.
fn the_mesh_works(lab: &Lab) -> Result<()> {
    let nodes = lab.kubectl_json(&["get", "meshnodes"])?;
    let address = |node: &serde_json::Value| {
        let name = node["metadata"]["name"].as_str().context("a name")?;
        let address = node["spec"]["meshIPs"][0].as_str().with_context(|| format!("no mesh address of {name}"))?;
        Ok((name.to_owned(), address.to_owned()))
    };
    let addresses =
        nodes["items"].as_array().context("a list")?.iter().map(address).collect::<Result<BTreeMap<_, _>>>()?;
    for pod in workload::pods(lab)? {
        for (there, address) in addresses.iter().filter(|(there, _)| **there != pod.node) {
            wait::until(&format!("{} to reach {there} at {address}", pod.node), warren::CONVERGED, || {
                let ping = ["--timeout", "2", "icmp", address, "1000"];
                check_on_host(lab, &pod.node, &ping).map_err(|error| format!("{error:#}"))?;
                pod.check(lab, &ping).map_err(|error| format!("{error:#}"))
            })?;
        }
    }
    reach(lab, "beside Warren")
}

/// Whatever was there is there, and what came is plainly Warren's.
fn nothing_was_touched(before: &BTreeMap<String, Snapshot>, now: &BTreeMap<String, Snapshot>) -> Result<()> {
    let changes = removal::changes(before, now);
    let foreign: Vec<&str> = changes.lines().filter(|line| !is_ours(line)).collect();
    ensure!(!changes.is_empty(), "Warren left no trace at all: is it there?");
    ensure!(foreign.is_empty(), "changed beside Warren's own:\n{}", foreign.join("\n"));
    Ok(())
}

/// By name, or by the table and the protocol that its routes and rules have; and never where the CNI's part begins.
fn is_ours(line: &str) -> bool {
    let ours = ["warren", "table 2182", "proto 218"].iter().any(|word| line.contains(word));
    line.contains(": + ") && ours && !OF_THE_CNI.iter().any(|word| line.contains(word))
}
