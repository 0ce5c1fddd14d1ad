//! The CNI file against the real plugins: what they make of it is what the rest of the node expects.

use std::io::Write;
use std::process::{Command, Stdio};

use node_agent::cni;
use serde_json::Value;

use crate::lab::Lab;
use crate::plans::plan;

/// The plugins that the lab's cluster uses, which the test run names, or Debian's.
fn plugins() -> String {
    std::env::var("WARREN_PARTS").map_or_else(|_| "/usr/lib/cni".into(), |parts| format!("{parts}/cni"))
}

/// Runs the first plugin of the file as a runtime does, its data in a folder that the test removes.
fn run(lab: &Lab, command: &str) -> Value {
    let file = cni::conflist(&plan("a").own_pod_cidrs, 1420);
    let file: Value = serde_json::from_str(&file).expect("JSON");
    let mut config = file["plugins"][0].clone();
    for key in ["cniVersion", "name"] {
        config[key] = file[key].clone();
    }
    config["ipam"]["dataDir"] = format!("/tmp/warren-ipam-{}", lab.ns("a")).into();
    let (pod, bin) = (format!("/run/netns/{}", lab.ns("pod")), plugins());
    let mut plugin = Command::new("ip")
        .args(["netns", "exec", &lab.ns("a"), &format!("{bin}/ptp")])
        .envs([
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "one"),
            ("CNI_NETNS", &pod),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", &bin),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the plugin");
    plugin.stdin.take().expect("a pipe").write_all(config.to_string().as_bytes()).expect("written");
    let output = plugin.wait_with_output().expect("the plugin ended");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    serde_json::from_str(&text).unwrap_or_default()
}

#[test]
fn the_real_plugins_make_a_pod_that_the_mesh_reaches() {
    let Some(lab) = Lab::with_bare_pod("pod") else { return };
    let bin = plugins();
    if !std::path::Path::new(&bin).join("ptp").exists() {
        assert!(std::env::var_os("REQUIRE_LAB").is_none_or(|v| v != "1"), "the lab is required: no plugins in {bin}");
        return eprintln!("skipped: no plugins in {bin}");
    }
    lab.apply("a", &plan("a"));
    lab.apply("b", &plan("b"));
    let made = run(&lab, "ADD");
    let addresses: Vec<&str> =
        made["ips"].as_array().expect("addresses").iter().filter_map(|ip| ip["address"].as_str()).collect();
    let [v4, v6] = addresses[..] else { panic!("{made}") };
    assert!(v4.starts_with("10.244.1.") && v6.starts_with("fd00:244:1::"), "{made}");
    assert!(lab.ip("pod", "link show eth0").contains("mtu 1420"));
    let service = lab.echo("pod", "[::]:7000", 2);
    for (any, address) in [("0.0.0.0:0", v4), ("[::]:0", v6)] {
        let address = address.split('/').next().expect("an address");
        let to = if any.starts_with('[') { format!("[{address}]:7000") } else { format!("{address}:7000") };
        let seen = lab.ask("pb", any, &to).expect("an answer").ip().to_string();
        assert!(["10.244.2.5", "fd00:244:2::5"].contains(&seen.as_str()), "{seen}");
    }
    service.join().expect("the service");
    assert_eq!(lab.apply("a", &plan("a")).changes, [], "a pod's interface is no drift");
    run(&lab, "DEL");
    assert_eq!(lab.way("a", v4.split('/').next().expect("an address")), "No route to host", "a dead pod");
    std::fs::remove_dir_all(format!("/tmp/warren-ipam-{}", lab.ns("a"))).expect("the plugin's data");
}
