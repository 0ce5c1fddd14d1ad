//! Looks for private keys everywhere but where they belong.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::Engine;

use crate::lab::Lab;
use crate::parts::hex;

/// Bytes read at once; windows overlap by the longest needle.
const WINDOW: usize = 4 << 20;
/// The key's file in an agent's state folder.
const KEY_FILE: &str = "private.key";
/// Where agents, operators and relays serve metrics, and how many of them a lab with Warren has at least.
const METRICS: [(u16, usize); 3] = [(21_810, 2), (21_811, 1), (21_813, 1)];
/// Programs whose memory is searched, and how many of them run at least.
const DUMPED: [(&str, usize); 2] = [("warren-operator", 2), ("warren-relay", 1)];

/// One secret in every shape it could have been written in.
#[derive(Clone, Debug)]
pub struct Needle {
    /// Whose it is.
    pub owner: String,
    shapes: Vec<Vec<u8>>,
}

impl Needle {
    /// Raw, hexadecimal of both cases, and base64 with its padding left out (which also finds base64 of other padding rules).
    #[must_use]
    pub fn of(owner: &str, secret: &[u8]) -> Self {
        let text = base64::engine::general_purpose::STANDARD_NO_PAD.encode(secret);
        let url = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(secret);
        let hex = hex(secret);
        let shapes = vec![
            secret.to_vec(),
            hex.to_uppercase().into_bytes(),
            hex.into_bytes(),
            text.into_bytes(),
            url.into_bytes(),
        ];
        Self { owner: owner.into(), shapes }
    }

    fn is_in(&self, hay: &[u8]) -> bool {
        self.shapes.iter().any(|shape| contains(hay, shape))
    }

    fn longest(&self) -> usize {
        self.shapes.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// The private key of every running node.
pub fn private_keys(lab: &Lab) -> Result<Vec<Needle>> {
    let read = |name: &str| {
        let path = key_file(lab, name);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let key = base64::engine::general_purpose::STANDARD.decode(text.trim()).context("a key in base64")?;
        Ok(Needle::of(name, &key))
    };
    lab.running().iter().map(|node| read(&node.name)).collect()
}

/// Where a node keeps its key, as seen from outside.
#[must_use]
pub fn key_file(lab: &Lab, node: &str) -> PathBuf {
    lab.state().node(node).join("disk/var/lib/warren").join(KEY_FILE)
}

/// Everything in which one of the needles was found: `owner in place`.
pub fn search(lab: &Lab, needles: &[Needle]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut note =
        |place: &str, hay: &[u8]| found.extend(hits(needles, hay).map(|owner| format!("{owner} in {place}")));
    for (place, text) in api_objects(lab)? {
        note(&place, text.as_bytes());
    }
    for (port, least) in METRICS {
        let url = format!("http://127.0.0.1:{port}/metrics");
        let mut seen = 0;
        for node in lab.running() {
            // Not every node runs every component.
            if let Ok(text) = crate::workload::check_on_host(lab, &node.name, &["get", &url]) {
                note(&format!("metrics of port {port} on {}", node.name), text.as_bytes());
                seen += 1;
            }
        }
        ensure!(seen >= least, "the metrics of port {port} were read on {seen} nodes, expected at least {least}");
    }
    for place in files(lab)? {
        found.extend(search_file(&place, needles)?);
    }
    found.extend(search_processes(needles)?);
    Ok(found)
}

/// Every object of every kind that can be listed.
fn api_objects(lab: &Lab) -> Result<Vec<(String, String)>> {
    let kinds = lab.kubectl(&["api-resources", "--verbs=list", "-o", "name"])?;
    let list = |kind: &str| Ok((format!("API objects {kind}"), lab.kubectl(&["get", kind, "-A", "-o", "json"])?));
    kinds.lines().map(list).collect()
}

/// etcd's files, logs, images, and every node's disk but the key's own file (and programs, which are not data).
fn files(lab: &Lab) -> Result<Vec<PathBuf>> {
    let state = lab.state();
    let mut all = vec![lab.images()?];
    let mut open = vec![state.dir().join("etcd"), state.logs(), state.dir().join("nodes")];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type());
            // Programs, and what containerd unpacked from the images: the archive that they came from is searched itself.
            let programs = path.ends_with("disk/opt") || path.ends_with("disk/var/lib/containerd");
            let own_key = path.ends_with(Path::new("disk/var/lib/warren").join(KEY_FILE));
            match kind {
                Ok(kind) if kind.is_dir() && !programs => open.push(path),
                Ok(kind) if kind.is_file() && !own_key => all.push(path),
                _ => {}
            }
        }
    }
    Ok(all)
}

fn search_file(path: &Path, needles: &[Needle]) -> Result<Vec<String>> {
    // A file may go while it is looked for: logs rotate, containers end.
    let Ok(mut file) = fs::File::open(path) else { return Ok(Vec::new()) };
    let keep = needles.iter().map(Needle::longest).max().unwrap_or(0);
    let mut found = Vec::new();
    let mut window = Vec::new();
    loop {
        let overlap = window.split_off(window.len().saturating_sub(keep));
        window = overlap;
        let read = (&mut file)
            .take(WINDOW as u64)
            .read_to_end(&mut window)
            .with_context(|| format!("reading {}", path.display()))?;
        found.extend(hits(needles, &window).map(|owner| format!("{owner} in {}", path.display())));
        if read < WINDOW {
            found.dedup();
            return Ok(found);
        }
    }
}

/// Arguments and environment of every process on this machine (the lab's among them), and the memory of operators and relays: what a
/// core dump would hold.
fn search_processes(needles: &[Needle]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (pid, name) in processes()? {
        for (file, what) in [("cmdline", "arguments"), ("environ", "environment")] {
            // A process may end while it is looked at.
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            found.extend(hits(needles, &bytes).map(|owner| format!("{owner} in the {what} of {name}")));
        }
    }
    for (program, least) in DUMPED {
        let mut searched = 0;
        // The kernel keeps 15 characters of a name.
        for (pid, _) in processes()?.iter().filter(|(_, comm)| program.get(..15).unwrap_or(program) == comm.as_str()) {
            let parts = memory(*pid);
            searched += usize::from(parts.iter().any(|part| !part.is_empty()));
            for part in parts {
                found.extend(hits(needles, &part).map(|owner| format!("{owner} in the memory of {program}")));
            }
        }
        ensure!(searched >= least, "the memory of {searched} {program} was read, expected at least {least}");
    }
    found.dedup();
    Ok(found)
}

/// Every process of this machine with its name. Other labs' are searched too, which does no harm.
fn processes() -> Result<Vec<(i32, String)>> {
    let entries = fs::read_dir("/proc").context("listing processes")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let named = |pid| Some((pid, fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned()));
    Ok(pids.filter_map(named).collect())
}

fn memory(pid: i32) -> Vec<Vec<u8>> {
    let (Ok(maps), Ok(memory)) =
        (fs::read_to_string(format!("/proc/{pid}/maps")), fs::File::open(format!("/proc/{pid}/mem")))
    else {
        return Vec::new();
    };
    let range = |line: &str| {
        let (from, to) = line.split(' ').next()?.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        line.split(' ').nth(1)?.starts_with("rw").then_some((from, to))
    };
    let read = |(from, to): (u64, u64)| {
        let mut part = vec![0; usize::try_from(to - from).ok()?];
        let length = memory.read_at(&mut part, from).ok()?;
        part.truncate(length);
        Some(part)
    };
    maps.lines().filter_map(range).filter_map(read).collect()
}

fn hits<'a>(needles: &'a [Needle], hay: &'a [u8]) -> impl Iterator<Item = &'a str> {
    needles.iter().filter(move |needle| needle.is_in(hay)).map(|needle| needle.owner.as_str())
}

/// Looks at the rest only where the first byte is right.
fn contains(hay: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return false };
    let mut rest = hay;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        rest = &rest[at..];
        if rest.starts_with(needle) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_in_every_shape() {
        let secret: Vec<u8> = (0..32).map(|i| i * 7 + 3).collect();
        let needle = Needle::of("n", &secret);
        let standard = base64::engine::general_purpose::STANDARD.encode(&secret);
        for hay in
            [secret.clone(), hex(&secret).into_bytes(), hex(&secret).to_uppercase().into_bytes(), standard.into_bytes()]
        {
            assert!(needle.is_in(&[b"before ".as_slice(), &hay, b" after"].concat()));
            assert!(!needle.is_in(&hay[1..]));
        }
    }

    #[test]
    fn a_secret_across_two_windows_is_found() {
        let secret = [0xa7; 32];
        let path = std::env::temp_dir().join(format!("warren-secret-{}", std::process::id()));
        let mut content = vec![0; WINDOW - 10];
        content.extend(secret);
        content.extend(vec![0; 100]);
        fs::write(&path, &content).unwrap();
        let found = search_file(&path, &[Needle::of("n", &secret)]).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!found.is_empty());
    }
}
