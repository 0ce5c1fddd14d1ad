//! The CNI file: content, atomicity, and what it refuses.

#[path = "net_lab/thread.rs"]
#[allow(dead_code)]
mod thread;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use node_agent::cni::{self, CniError, CniPlan, RunDir};
use node_agent::net::Standing;

/// Two folders of a node, removed at the end.
struct Node(PathBuf);

impl Node {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("warren-cni-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let node = Self(std::env::temp_dir().join(name));
        for dir in [node.conf(), node.bin()] {
            fs::create_dir_all(dir).expect("a folder");
        }
        for plugin in cni::PLUGINS {
            node.program(plugin);
        }
        node
    }

    fn conf(&self) -> PathBuf {
        self.0.join("net.d")
    }

    fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }

    fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// A plan with the file in the runtime folder; here the agent and the host see it at the same place.
    fn linked(&self) -> CniPlan {
        CniPlan { run_dir: Some(RunDir { here: self.run(), host: self.run() }), ..self.plan() }
    }

    fn program(&self, name: &str) {
        let path = self.bin().join(name);
        fs::write(&path, "#!").expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    fn plan(&self) -> CniPlan {
        let pod_cidrs = ["10.244.1.0/24", "fd00:244:1::/64"].map(|c| c.parse().expect("a prefix")).to_vec();
        CniPlan { conf_dir: self.conf(), bin_dir: self.bin(), run_dir: None, pod_cidrs, confirmed: true }
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.conf()).expect("the folder");
        let mut names: Vec<_> =
            entries.map(|e| e.expect("an entry").file_name().into_string().expect("a name")).collect();
        names.sort();
        names
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn standing() -> Standing {
    Standing::for_tests(1420)
}

fn inode_of(meta: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(meta)
}

fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("the file"))
}

#[test]
fn the_file_wires_both_families_with_the_devices_mtu() {
    let node = Node::new();
    assert!(cni::publish(&node.plan(), standing()).expect("published").written);
    let path = node.conf().join("05-warren.conflist");
    let file: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).expect("the file")).expect("JSON");
    assert_eq!(file["cniVersion"], "1.0.0");
    let kinds: Vec<_> = file["plugins"].as_array().expect("plugins").iter().map(|p| p["type"].clone()).collect();
    assert_eq!(kinds, ["ptp", "portmap"]);
    assert_eq!(file["plugins"][0]["mtu"], 1420);
    let ipam = &file["plugins"][0]["ipam"];
    assert_eq!(ipam["ranges"][0][0]["subnet"], "10.244.1.0/24");
    assert_eq!(ipam["ranges"][1][0]["subnet"], "fd00:244:1::/64");
    assert_eq!(ipam["routes"].as_array().expect("routes").len(), 2);
    assert!(ipam["dataDir"].as_str().expect("a folder").starts_with("/run/"));
    assert_eq!(fs::metadata(path).expect("the file").permissions().mode() & 0o777, 0o600);
}

#[test]
fn unchanged_content_is_not_written_and_changed_content_replaces_the_file_whole() {
    let node = Node::new();
    cni::publish(&node.plan(), standing()).expect("published");
    let path = node.conf().join(cni::FILE);
    let first = inode(&path);
    assert!(!cni::publish(&node.plan(), standing()).expect("published").written);
    assert_eq!(inode(&path), first);
    assert!(cni::publish(&node.plan(), Standing::for_tests(1380)).expect("published").written);
    assert_ne!(inode(&path), first, "a rename, not a write into the file that the runtime may be reading");
    assert_eq!(node.files(), [cni::FILE]);
}

#[test]
fn a_crash_in_the_middle_leaves_nothing_that_the_runtime_reads() {
    let node = Node::new();
    fs::write(node.conf().join(".05-warren.conflist.tmp"), "{").expect("a file");
    cni::publish(&node.plan(), standing()).expect("published");
    assert_eq!(node.files(), [cni::FILE]);
}

#[test]
fn missing_plugins_are_named_and_nothing_is_written() {
    let node = Node::new();
    fs::remove_file(node.bin().join("portmap")).expect("removed");
    fs::set_permissions(node.bin().join("ptp"), fs::Permissions::from_mode(0o644)).expect("a mode");
    let refused = cni::publish(&node.plan(), standing()).expect_err("plugins are missing");
    assert!(refused.to_string().contains("found no ptp, portmap: install"), "{refused}");
    assert_eq!(node.files(), [""; 0]);
}

#[test]
fn nothing_is_written_before_the_pod_cidrs_are_known() {
    let node = Node::new();
    let plan = CniPlan { pod_cidrs: Vec::new(), ..node.plan() };
    assert!(matches!(cni::publish(&plan, standing()), Err(CniError::NoPodCidrs)));
    assert_eq!(node.files(), [""; 0]);
}

#[test]
fn a_folder_that_cannot_be_written_is_said_to_be_so() {
    let node = Node::new();
    let plan = CniPlan { conf_dir: node.0.join("absent"), ..node.plan() };
    let refused = cni::publish(&plan, standing()).expect_err("no such folder");
    assert!(matches!(refused, CniError::NotWritable { .. }), "{refused}");
    assert!(refused.to_string().contains("chown root") && refused.to_string().contains("cni.confDir"), "{refused}");
}

#[test]
fn a_folder_of_another_owner_is_not_written_although_the_agent_is_root() {
    if let Some(reason) = (!thread::is_root()).then_some("needs root to change an owner") {
        assert!(std::env::var_os("REQUIRE_LAB").is_none_or(|v| v != "1"), "the lab is required: {reason}");
        return eprintln!("skipped: {reason}");
    }
    let node = Node::new();
    std::os::unix::fs::chown(node.conf(), Some(1000), Some(1000)).expect("an owner");
    let plan = node.plan();
    let agent = std::thread::spawn(move || {
        thread::become_agent().expect("drop privileges");
        cni::publish(&plan, standing())
    });
    let refused = agent.join().expect("the agent's thread").expect_err("no DAC_OVERRIDE");
    assert!(matches!(refused, CniError::NotWritable { .. }), "{refused}");
    assert!(refused.to_string().contains("found owner 1000, mode 755"), "{refused}");
}

#[test]
fn files_of_others_are_left_alone_and_one_that_wins_is_named() {
    let node = Node::new();
    let other = node.conf().join("10-flannel.conflist");
    fs::write(&other, "flannel").expect("a file");
    assert_eq!(cni::publish(&node.plan(), standing()).expect("published").shadowed_by, None);
    fs::write(node.conf().join("00-multus.conf"), "multus").expect("a file");
    let published = cni::publish(&node.plan(), standing()).expect("published");
    assert_eq!(published.shadowed_by.as_deref(), Some("00-multus.conf"));
    assert!(cni::withdraw(&node.conf(), &node.run(), true).expect("a dry run"));
    assert_eq!(node.files().len(), 3);
    assert!(cni::withdraw(&node.conf(), &node.run(), false).expect("withdrawn"));
    assert!(!cni::withdraw(&node.conf(), &node.run(), false).expect("nothing left"));
    assert_eq!(node.files(), ["00-multus.conf", "10-flannel.conflist"]);
}

#[test]
fn a_file_of_our_name_that_is_not_ours_is_neither_replaced_nor_removed() {
    let node = Node::new();
    for content in ["{ \"name\": \"hers\" }", "not JSON"] {
        fs::write(node.conf().join(cni::FILE), content).expect("a file");
        assert!(matches!(cni::publish(&node.plan(), standing()), Err(CniError::NotOurs { .. })));
        assert!(!cni::withdraw(&node.conf(), &node.run(), false).expect("not ours"));
        assert_eq!(fs::read_to_string(node.conf().join(cni::FILE)).expect("still there"), content);
    }
}

#[test]
fn after_a_reboot_the_link_leads_nowhere_until_the_agent_has_written() {
    let node = Node::new();
    assert!(cni::publish(&node.linked(), standing()).expect("published").written);
    let link = node.conf().join(cni::FILE);
    let target = node.run().join("cni").join(cni::FILE);
    assert_eq!(fs::read_link(&link).expect("a link"), target);
    assert!(fs::read_to_string(&link).expect("the file").contains("10.244.1.0/24"));
    assert_eq!(fs::metadata(&target).expect("the file").permissions().mode() & 0o777, 0o600);
    assert!(!cni::publish(&node.linked(), standing()).expect("published").written);
    assert!(cni::is_published(&node.linked(), 1420));

    // The reboot: /run is empty, and the node has another range.
    fs::remove_dir_all(node.run()).expect("removed");
    assert_eq!(fs::read_to_string(&link).expect_err("no file").kind(), std::io::ErrorKind::NotFound);
    assert!(!cni::is_published(&node.linked(), 1420));
    let moved = CniPlan { pod_cidrs: vec!["10.244.9.0/24".parse().expect("a prefix")], ..node.linked() };
    let before = fs::symlink_metadata(&link).expect("the link");
    assert!(cni::publish(&moved, standing()).expect("published").written);
    let after = fs::symlink_metadata(&link).expect("the link");
    assert_ne!(inode_of(&before), inode_of(&after), "the runtime watches the folder of the link only");
    assert!(fs::read_to_string(&link).expect("the file").contains("10.244.9.0/24"));
    assert_eq!(node.files(), [cni::FILE]);
}

#[test]
fn remembered_pod_cidrs_keep_a_file_up_and_never_bring_one_into_being() {
    let node = Node::new();
    let remembered = || CniPlan { confirmed: false, ..node.linked() };
    let refused = || matches!(cni::publish(&remembered(), standing()), Err(CniError::Unconfirmed));
    assert!(refused() && node.files().is_empty(), "a node that was never there");

    cni::publish(&node.linked(), standing()).expect("published");
    assert!(!cni::publish(&remembered(), standing()).expect("it stands").written);
    let other_mtu = cni::publish(&remembered(), Standing::for_tests(1380)).expect("kept up");
    assert!(other_mtu.written);

    fs::remove_dir_all(node.run()).expect("a reboot");
    assert!(refused(), "a node that was deleted meanwhile has another range");
    assert!(cni::publish(&node.linked(), standing()).expect("confirmed").written);
}

#[test]
fn the_link_leads_where_the_host_has_the_file() {
    let node = Node::new();
    let host = PathBuf::from("/run/of/the/host");
    let plan = CniPlan { run_dir: Some(RunDir { here: node.run(), host: host.clone() }), ..node.plan() };
    cni::publish(&plan, standing()).expect("published");
    assert_eq!(fs::read_link(node.conf().join(cni::FILE)).expect("a link"), host.join("cni").join(cni::FILE));
    assert!(!cni::publish(&plan, standing()).expect("published").written, "though the agent can't follow the link");
    assert!(cni::withdraw(&node.conf(), &node.run(), false).expect("withdrawn"));
    assert_eq!(node.files(), [""; 0]);
    assert!(!node.run().join("cni").join(cni::FILE).exists());
}

#[test]
fn a_file_of_ours_becomes_a_link_and_a_link_a_file_and_foreign_links_stay() {
    let node = Node::new();
    let is_link = || fs::symlink_metadata(node.conf().join(cni::FILE)).expect("something").is_symlink();
    cni::publish(&node.plan(), standing()).expect("published");
    assert!(!is_link());
    assert!(cni::publish(&node.linked(), standing()).expect("published").written);
    assert!(is_link());
    assert!(cni::publish(&node.plan(), standing()).expect("published").written, "without the flag as ever");
    assert!(!is_link());

    let theirs = node.0.join("theirs.conflist");
    fs::write(&theirs, "{ \"name\": \"hers\" }").expect("a file");
    fs::remove_file(node.conf().join(cni::FILE)).expect("removed");
    std::os::unix::fs::symlink(&theirs, node.conf().join(cni::FILE)).expect("a link");
    for plan in [node.plan(), node.linked()] {
        assert!(matches!(cni::publish(&plan, standing()), Err(CniError::NotOurs { .. })));
    }
    assert!(fs::read_to_string(node.conf().join(cni::FILE)).expect("still there").contains("hers"));
}

#[test]
fn what_others_did_to_file_or_link_is_noticed_and_made_good() {
    let node = Node::new();
    let (link, target) = (node.conf().join(cni::FILE), node.run().join("cni").join(cni::FILE));
    let meddle: [&dyn Fn(); 4] = [
        &|| fs::remove_file(&link).expect("removed"),
        &|| fs::remove_file(&target).expect("removed"),
        &|| fs::write(&target, "{ \"name\": \"warren\" }").expect("written"),
        &|| {
            fs::remove_file(&link).expect("removed");
            std::os::unix::fs::symlink(node.0.join("old/cni").join(cni::FILE), &link).expect("a link");
        },
    ];
    cni::publish(&node.linked(), standing()).expect("published");
    for meddle in meddle {
        meddle();
        assert!(!cni::is_published(&node.linked(), 1420));
        assert!(cni::publish(&node.linked(), standing()).expect("published").written);
        assert!(cni::is_published(&node.linked(), 1420));
    }
}
