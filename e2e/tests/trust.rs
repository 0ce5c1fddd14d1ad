//! Who may write what, where private keys are, and that one writer is one writer.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::api::Client;
use e2e::images::Set;
use e2e::lab::Lab;
use e2e::scenario::Scenario;
use e2e::secrets::{self, Needle};
use e2e::{checks, harness, wait, warren};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const MESHNODES: &str = "/apis/warren.dev/v1alpha1/meshnodes";

fn main() -> ExitCode {
    harness::main(
        Scenario::demo("t-trust"),
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

/// Duplicate and impossible keys, addresses that belong to nobody or to somebody else: nothing that worked is lost.
fn garbage_harms_nobody(lab: &Lab) -> Result<()> {
    let fw = Client::of(lab, "warren-agent", Some("fw"))?;
    let status = format!("{MESHNODES}/fw/status");
    let admitted = || -> Result<Value> {
        Ok(lab.kubectl_json(&["get", "meshnode", "fw"])?["spec"]["admission"]["publicKey"].clone())
    };
    let (before, stolen) = (admitted()?, lab.kubectl_json(&["get", "meshnode", "pub"])?["status"]["publicKey"].clone());
    let zero = "A".repeat(43) + "=";
    for key in [stolen, json!(zero)] {
        fw.patch(&status, &json!({"status": {"publicKey": key}}))?;
        ensure!(admitted()? == before || admitted()?.is_null(), "{key} was admitted for fw");
    }
    let many: Vec<Value> = (0..17).map(|i| json!({"address": format!("198.51.100.{i}:1"), "kind": "Host"})).collect();
    let answer = fw.patch(&status, &json!({"status": {"candidates": many}}))?;
    ensure!(answer.status == 422, "17 candidates were taken: {answer:?}");
    let wrong = ["127.0.0.1:1", "169.254.169.254:80", "224.0.0.1:5", "10.96.0.1:443", "10.244.0.3:1"];
    let wrong: Vec<Value> = wrong.iter().map(|address| json!({"address": address, "kind": "Host"})).collect();
    fw.patch(&status, &json!({"status": {"candidates": wrong}}))?;
    // The agent writes its own truth again when it starts.
    lab.exec("fw", "pkill", &["-x", "warren-agent"])?;
    wait::until("the key of fw to be admitted again", SOON, || {
        let object = lab.kubectl_json(&["get", "meshnode", "fw"]).map_err(|error| format!("{error:#}"))?;
        let (own, admitted) = (&object["status"]["publicKey"], &object["spec"]["admission"]["publicKey"]);
        if *admitted == before && own == admitted {
            Ok(())
        } else {
            Err(format!("own {own}, admitted {admitted}, before {before}"))
        }
    })?;
    warren::wait_ready(lab)
}

fn no_private_key_is_anywhere_else(lab: &Lab) -> Result<()> {
    let planted: [u8; 32] = std::array::from_fn(|i| u8::try_from(i * 5 + 17).unwrap_or(0));
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(planted);
    lab.kubectl(&["create", "configmap", "planted", &format!("--from-literal=key={text}")])?;
    let found = secrets::search(lab, &[Needle::of("planted", &planted)])?;
    lab.kubectl(&["delete", "configmap", "planted"])?;
    for place in ["API objects configmaps", "etcd"] {
        ensure!(found.iter().any(|found| found.contains(place)), "the planted key was not found in {place}: {found:?}");
    }
    let found = secrets::search(lab, &secrets::private_keys(lab)?)?;
    ensure!(found.is_empty(), "private keys were found: {}", found.join("; "));
    Ok(())
}

/// The slices stay byte for byte what they were, and the lease names another holder.
fn one_writer_after_a_kill(lab: &Lab) -> Result<()> {
    let slices = || lab.kubectl(&["get", "meshpeerslices", "-o", "json"]);
    let holder = || -> Result<String> {
        let leases = lab.kubectl_json(&["get", "leases", "-n", warren::NAMESPACE])?;
        let items = leases["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        match items.iter().find_map(|lease| lease["spec"]["holderIdentity"].as_str()) {
            Some(holder) if !holder.is_empty() => Ok(holder.into()),
            _ => bail!("no lease has a holder: {leases}"),
        }
    };
    let (before, old) = (slices()?, holder()?);
    let pods =
        lab.kubectl_json(&["get", "pods", "-n", warren::NAMESPACE, "-l", "app.kubernetes.io/component=operator"])?;
    let items = pods["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let leader = items.iter().find(|pod| pod["metadata"]["name"].as_str().is_some_and(|name| old.contains(name)));
    let node =
        leader.and_then(|pod| pod["spec"]["nodeName"].as_str()).with_context(|| format!("no pod of holder {old:?}"))?;
    lab.exec(node, "pkill", &["-9", "-x", "warren-operator"])?;
    wait::until("the lease to be renewed after the kill", SOON, || {
        let leases =
            lab.kubectl_json(&["get", "leases", "-n", warren::NAMESPACE]).map_err(|error| format!("{error:#}"))?;
        let transitions = leases["items"][0]["spec"]["leaseTransitions"].as_u64().unwrap_or(0);
        if transitions > 0 && holder().is_ok() { Ok(()) } else { Err(format!("{transitions} transitions")) }
    })?;
    ensure!(slices()? == before, "the slices changed although nothing else did");
    Ok(())
}
