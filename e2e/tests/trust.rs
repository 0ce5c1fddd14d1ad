//! Who may write what, where private keys are, and that one writer is one writer.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use e2e::api::Client;
use e2e::cluster::node;
use e2e::images::Set;
use e2e::lab::Lab;
use e2e::process::Process;
use e2e::scenario::Scenario;
use e2e::secrets::{self, Needle};
use e2e::{checks, harness, wait, warren};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const MESHNODES: &str = "/apis/warren.dev/v1alpha1/meshnodes";

fn main() -> ExitCode {
    harness::main(
        Scenario::direct("t-trust"),
        Set::All,
        &[
            ("helm_install_returns_and_every_node_is_ready", checks::install),
            ("every_pod_reaches_every_pod", checks::pod_to_pod),
            ("the_key_exchange_is_visible", the_key_exchange_is_visible),
            ("a_token_writes_its_own_status_and_nothing_else", a_token_writes_only_its_own_status),
            ("garbage_in_a_status_harms_nobody", garbage_harms_nobody),
            ("no_private_key_is_anywhere_else", no_private_key_is_anywhere_else),
            ("one_writer_after_the_leader_was_killed", one_writer_after_a_kill),
            ("everything_still_works", checks::pod_to_pod),
        ],
    )
}

/// Key and candidates in the status, admitted in the spec, in the slices that peers read.
fn the_key_exchange_is_visible(lab: &Lab) -> Result<()> {
    let slices = lab.kubectl(&["get", "meshpeerslices", "-o", "json"])?;
    for node in lab.running() {
        let object = lab.kubectl_json(&["get", "meshnode", &node.name])?;
        let key = object["status"]["publicKey"].as_str().with_context(|| format!("{} has no public key", node.name))?;
        ensure!(object["spec"]["admission"]["publicKey"] == key, "{} is admitted with another key", node.name);
        ensure!(
            object["status"]["candidates"].as_array().is_some_and(|all| !all.is_empty()),
            "{} has no candidates",
            node.name
        );
        ensure!(slices.contains(key), "no slice has the key of {}", node.name);
    }
    Ok(())
}

fn a_token_writes_only_its_own_status(lab: &Lab) -> Result<()> {
    let (own, other, unbound) = (
        Client::of(lab, "warren-agent", Some("pub"))?,
        Client::of(lab, "warren-agent", Some("fw"))?,
        Client::of(lab, "warren-agent", None)?,
    );
    let version = json!({"status": {"version": "written-by-a-test"}});
    let status = format!("{MESHNODES}/pub/status");
    let accepted = own.patch(&status, &version)?;
    ensure!(accepted.status == 200, "its own status was refused: {accepted:?}");
    for (who, client) in [("another node", &other), ("no node", &unbound)] {
        let answer = client.patch(&status, &version)?;
        ensure!(
            answer.status == 403 && answer.body.contains("warren-agent-writes"),
            "the token of {who} got {answer:?}"
        );
    }
    let with_spec =
        json!({"status": {"version": "again"}, "spec": {"suspended": true}, "metadata": {"labels": {"a": "b"}}});
    own.patch(&status, &with_spec)?;
    let object = lab.kubectl_json(&["get", "meshnode", "pub"])?;
    ensure!(
        object["spec"]["suspended"] != true && object["metadata"]["labels"]["a"].is_null(),
        "the status wrote more: {object}"
    );
    for (method, path, body) in [
        ("PATCH", format!("{MESHNODES}/pub"), json!({"spec": {"suspended": true}})),
        ("PATCH", format!("{MESHNODES}/pub"), json!({"metadata": {"labels": {"a": "b"}}})),
        ("DELETE", format!("{MESHNODES}/fw"), json!({})),
        ("DELETE", "/apis/warren.dev/v1alpha1/meshpeerslices".into(), json!({})),
        ("GET", "/api/v1/nodes".into(), json!({})),
        ("GET", "/api/v1/pods".into(), json!({})),
        ("GET", "/api/v1/secrets".into(), json!({})),
        (
            "POST",
            MESHNODES.into(),
            json!({"apiVersion": "warren.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": "new"}}),
        ),
    ] {
        let answer = own.request(method, &path, &body.to_string())?;
        ensure!(answer.status == 403, "{method} {path} answered {}: {}", answer.status, answer.body);
    }
    Ok(())
}

/// Duplicate and impossible keys, addresses that belong to nobody or to somebody else: each is refused or named in a condition, no peer is
/// told of it, and nothing that worked is lost. The agent of the node sleeps meanwhile, or it would write its own truth over it.
fn garbage_harms_nobody(lab: &Lab) -> Result<()> {
    signal_agent(lab, "fw", "-STOP")?;
    let result = garbage_of_fw(lab);
    signal_agent(lab, "fw", "-CONT")?;
    result?;
    // The agent sees what stands in its status and writes its own truth again.
    let admitted = admission(lab, "fw")?["publicKey"].clone();
    wait::until("fw to show its own key and candidates again", SOON, || {
        let object = lab.kubectl_json(&["get", "meshnode", "fw"]).map_err(|error| format!("{error:#}"))?;
        let good =
            object["status"]["publicKey"] == admitted && object["status"]["candidates"] != json!(wrong_candidates());
        if good && raised(&object, "CandidatesDropped").is_none() { Ok(()) } else { Err(object["status"].to_string()) }
    })?;
    warren::wait_ready(lab)
}

fn garbage_of_fw(lab: &Lab) -> Result<()> {
    let fw = Client::of(lab, "warren-agent", Some("fw"))?;
    let status = format!("{MESHNODES}/fw/status");
    let write = |what: Value| -> Result<()> {
        let answer = fw.patch(&status, &json!({"status": what}))?;
        ensure!(answer.status == 200, "{what} was refused: {answer:?}");
        Ok(())
    };
    let before = admission(lab, "fw")?["publicKey"].clone();
    let stolen = lab.kubectl_json(&["get", "meshnode", "pub"])?["status"]["publicKey"].clone();
    for (key, reason) in [(stolen, "DuplicateKey"), (json!("A".repeat(43) + "="), "InvalidKey")] {
        write(json!({"publicKey": key}))?;
        wait::until(&format!("the condition Admitted of fw to say {reason}"), SOON, || {
            let object = lab.kubectl_json(&["get", "meshnode", "fw"]).map_err(|error| format!("{error:#}"))?;
            match raised(&object, "Admitted") {
                Some((status, said)) if status == "False" && said == reason => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
        let slices = lab.kubectl(&["get", "meshpeerslices", "-o", "json"])?;
        ensure!(slices.contains(before.as_str().context("a key")?), "peers lost the key of fw to {reason}");
    }
    write(json!({"publicKey": before}))?;
    let many: Vec<Value> = (0..17).map(|i| json!({"address": format!("198.51.100.{i}:1"), "kind": "Host"})).collect();
    let answer = fw.patch(&status, &json!({"status": {"candidates": many}}))?;
    ensure!(answer.status == 422 && answer.body.contains("16"), "17 candidates were taken: {answer:?}");
    write(json!({"candidates": wrong_candidates()}))?;
    wait::until("the condition CandidatesDropped of fw", SOON, || {
        let object = lab.kubectl_json(&["get", "meshnode", "fw"]).map_err(|error| format!("{error:#}"))?;
        raised(&object, "CandidatesDropped").map(drop).ok_or_else(|| object["status"]["conditions"].to_string())
    })?;
    let slices = lab.kubectl(&["get", "meshpeerslices", "-o", "json"])?;
    for address in WRONG {
        ensure!(!slices.contains(&format!("{address:?}")), "peers were told the candidate {address}");
    }
    Ok(())
}

/// Loopback, metadata, multicast, the API's Service, another node's pod.
const WRONG: [&str; 5] = ["127.0.0.1:1", "169.254.169.254:80", "224.0.0.1:5", "10.96.0.1:443", "10.244.0.3:1"];

fn wrong_candidates() -> Vec<Value> {
    WRONG.iter().map(|address| json!({"address": address, "kind": "Host"})).collect()
}

fn signal_agent(lab: &Lab, node: &str, signal: &str) -> Result<()> {
    lab.exec(node, "pkill", &[signal, "-x", "warren-agent"]).map(drop)
}

fn admission(lab: &Lab, node: &str) -> Result<Value> {
    Ok(lab.kubectl_json(&["get", "meshnode", node])?["spec"]["admission"].clone())
}

/// Status and reason of a condition, if the object has it.
fn raised<'a>(object: &'a Value, kind: &str) -> Option<(&'a str, &'a str)> {
    let all = object["status"]["conditions"].as_array()?;
    let one = all.iter().find(|one| one["type"] == kind)?;
    Some((one["status"].as_str()?, one["reason"].as_str()?))
}

/// A planted key is found by the same search, in every shape of place; then no node's own key is found anywhere.
fn no_private_key_is_anywhere_else(lab: &Lab) -> Result<()> {
    let needle = Planted::everywhere(lab)?;
    let found = secrets::search(lab, std::slice::from_ref(&needle.needle))?;
    needle.remove(lab)?;
    for place in Planted::PLACES {
        ensure!(found.iter().any(|found| found.contains(place)), "the planted key was not found in {place}: {found:?}");
    }
    let found = secrets::search(lab, &secrets::private_keys(lab)?)?;
    ensure!(found.is_empty(), "private keys were found: {}", found.join("; "));
    Ok(())
}

/// A key where none may be: in an object, in arguments and environment, in a file beside the node's own key, in a log.
struct Planted {
    needle: Needle,
    process: Process,
}

impl Planted {
    const PLACES: [&'static str; 6] =
        ["API objects configmaps", "etcd/member", "arguments", "environment", "planted.cache", "planted.log"];

    fn everywhere(lab: &Lab) -> Result<Self> {
        let secret: [u8; 32] = std::array::from_fn(|i| u8::try_from(i * 5 + 17).unwrap_or(0));
        let text = base64::engine::general_purpose::STANDARD.encode(secret);
        lab.kubectl(&["create", "configmap", "planted", &format!("--from-literal=key={text}")])?;
        std::fs::write(Self::cache_file(lab), secret).context("planting beside a key")?;
        std::fs::write(lab.state().logs().join("planted.log"), &text).context("planting in a log")?;
        let node = node::namespace(lab, lab.node("pub")?);
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        // `sleep` takes several intervals; a shell keeps the word as an argument of its own.
        let mut sleeper = node.command("sh", &["-c", "sleep 600; true", &hex]);
        let process = Process::start(lab.state(), "planted", sleeper.env("PLANTED", &text))?;
        Ok(Self { needle: Needle::of("planted", &secret), process })
    }

    fn remove(self, lab: &Lab) -> Result<()> {
        self.process.end()?;
        std::fs::remove_file(Self::cache_file(lab)).context("removing a planted key")?;
        std::fs::remove_file(lab.state().logs().join("planted.log")).context("removing a planted key")?;
        lab.kubectl(&["delete", "configmap", "planted"]).map(drop)
    }

    fn cache_file(lab: &Lab) -> std::path::PathBuf {
        secrets::key_file(lab, "pub").with_file_name("planted.cache")
    }
}

/// Who leads, and how often that has changed.
fn lease(lab: &Lab) -> Result<(String, u64)> {
    let lease = lab.kubectl_json(&["get", "leases", "-n", warren::NAMESPACE])?["items"][0]["spec"].clone();
    match lease["holderIdentity"].as_str() {
        Some(holder) if !holder.is_empty() => Ok((holder.into(), lease["leaseTransitions"].as_u64().unwrap_or(0))),
        _ => bail!("the lease has no holder: {lease}"),
    }
}

/// Another replica takes over, looks at everything, and leaves the slices byte for byte what they were.
fn one_writer_after_a_kill(lab: &Lab) -> Result<()> {
    let slices = || lab.kubectl(&["get", "meshpeerslices", "-o", "json"]);
    let (before, (old, transitions)) = (slices()?, lease(lab)?);
    let pods =
        lab.kubectl_json(&["get", "pods", "-n", warren::NAMESPACE, "-l", "app.kubernetes.io/component=operator"])?;
    let items = pods["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let leader = items.iter().find(|pod| pod["metadata"]["name"].as_str().is_some_and(|name| old.contains(name)));
    let node =
        leader.and_then(|pod| pod["spec"]["nodeName"].as_str()).with_context(|| format!("no pod of holder {old:?}"))?;
    // Asleep, not killed: kubelet would start the same pod anew within a second, and it would take its own lease again.
    signal_operator(lab, node, "-STOP")?;
    let taken = wait::until("another replica to take the lease", SOON, || match lease(lab) {
        Ok((holder, now)) if holder != old && now > transitions => Ok(()),
        other => Err(format!("{other:?}, before {old} and {transitions}")),
    });
    signal_operator(lab, node, "-KILL")?;
    taken?;
    // A wrong count that only a leader that has planned everything puts right.
    let wrong = json!({"status": {"nodes": {"accepted": 0}}}).to_string();
    lab.kubectl(&["patch", "mesh", "default", "--subresource=status", "--type=merge", "-p", &wrong])?;
    let expected = lab.running().len();
    wait::until("the new leader to count the nodes", SOON, || {
        let mesh = lab.kubectl_json(&["get", "mesh", "default"]).map_err(|error| format!("{error:#}"))?;
        let accepted = &mesh["status"]["nodes"]["accepted"];
        if *accepted == expected { Ok(()) } else { Err(format!("{accepted} of {expected}")) }
    })?;
    ensure!(slices()? == before, "the slices changed although nothing of theirs did");
    Ok(())
}

fn signal_operator(lab: &Lab, node: &str, signal: &str) -> Result<()> {
    lab.exec(node, "pkill", &[signal, "-x", "warren-operator"]).map(drop)
}
