//! Putting the file in its place and taking it away.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::{FILE, NETWORK, PLUGINS, conflist};
use crate::files;
use crate::net::Standing;

/// Written first, then renamed; the name has none of the endings that containerd reads.
const TEMPORARY: &str = ".05-warren.conflist.tmp";

/// The folder in the runtime folder that holds the file. A link that ends like this is ours, wherever that folder was.
const BELOW_RUN: &str = "cni";

/// The CIS benchmark asks for 0600 on CNI files; the runtime reads them as root.
const MODE: u32 = 0o600;

/// No conflist is this long; a foreign file is not read further.
const MOST_BYTES: u64 = 64 * 1024;

/// What the CNI file needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniPlan {
    /// The folder that the container runtime reads.
    pub conf_dir: PathBuf,
    /// The folder of the plugins.
    pub bin_dir: PathBuf,
    /// Where the file itself lies, if not in that folder.
    pub run_dir: Option<RunDir>,
    /// This node's podCIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Whether the API names them now. Those from disk may be another node's since a node of this name was deleted: they do
    /// for a file that stands, and never bring one into being.
    pub confirmed: bool,
}

/// The runtime folder, which a reboot empties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    /// As the agent sees it.
    pub here: PathBuf,
    /// As the host sees it, absolute: the container runtime follows the link there.
    pub host: PathBuf,
}

impl RunDir {
    fn file(&self) -> PathBuf {
        self.here.join(BELOW_RUN).join(FILE)
    }

    fn target(&self) -> PathBuf {
        self.host.join(BELOW_RUN).join(FILE)
    }
}

/// The file is in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Whether it had to be written.
    pub written: bool,
    /// A file of another network that sorts before ours and hence wins.
    pub shadowed_by: Option<String>,
}

/// Why the file is not in place, or not taken away.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// The node has no podCIDR yet.
    #[error(
        "expected a podCIDR for this node, found none yet: the controller manager assigns it (--allocate-node-cidrs)"
    )]
    NoPodCidrs,
    /// Nothing stands for this boot, and the podCIDRs are remembered ones.
    #[error("expected the API to confirm the podCIDR of this node, found only what was remembered from before")]
    Unconfirmed,
    /// Plugins are not installed.
    #[error("expected the CNI plugins in {}, found no {}: install containernetworking-plugins or set the chart's cni.binDir", dir.display(), missing.join(", "))]
    MissingPlugins {
        /// Their names.
        missing: Vec<&'static str>,
        /// Where they were looked for.
        dir: PathBuf,
    },
    /// The folder cannot be written: another owner, read-only, or not there. The condition `CNIDirNotWritable`.
    #[error("expected to write in {}, found {found}: `chown root {dir}` on the node, or set the chart's cni.confDir", dir.display(), dir = dir.display())]
    NotWritable {
        /// The folder.
        dir: PathBuf,
        /// Owner and error.
        found: String,
    },
    /// A file of our name describes another network.
    #[error("expected {} to be absent or Warren's, found another network in it: move it away", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// Anything else.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Puts the file in place, with the MTU of the device; writes nothing if it is there already.
pub fn publish(plan: &CniPlan, standing: Standing) -> Result<Published, CniError> {
    if plan.pod_cidrs.is_empty() {
        return Err(CniError::NoPodCidrs);
    }
    let missing: Vec<_> = PLUGINS.into_iter().filter(|name| !is_program(&plan.bin_dir.join(name))).collect();
    if !missing.is_empty() {
        return Err(CniError::MissingPlugins { missing, dir: plan.bin_dir.clone() });
    }
    let path = plan.conf_dir.join(FILE);
    let found = find(&path)?;
    if found == Found::Foreign {
        return Err(CniError::NotOurs { path });
    }
    let content = conflist(&plan.pod_cidrs, standing.mtu());
    let written = !stands(plan, &found, &content)?;
    if written {
        if !plan.confirmed && !is_configuration(plan, &found)? {
            return Err(CniError::Unconfirmed);
        }
        match &plan.run_dir {
            None => replace(&plan.conf_dir, &Entry::File(&content))?,
            Some(run_dir) => {
                // The link last: it is what the runtime hears of.
                write_target(run_dir, &content)?;
                replace(&plan.conf_dir, &Entry::Link(run_dir.target()))?;
            }
        }
    }
    Ok(Published { written, shadowed_by: shadow(&plan.conf_dir) })
}

/// Whether what [`publish`] put in place is there still. Nobody announces that it is gone.
pub fn is_published(plan: &CniPlan, mtu: u16) -> bool {
    let found = find(&plan.conf_dir.join(FILE));
    found.and_then(|found| stands(plan, &found, &conflist(&plan.pod_cidrs, mtu))).unwrap_or(false)
}

/// Takes the file away if it is ours, and what it links to; answers whether there was one. With `dry_run` only answers.
pub fn withdraw(conf_dir: &Path, run_dir: &Path, dry_run: bool) -> Result<bool, CniError> {
    let path = conf_dir.join(FILE);
    let target = run_dir.join(BELOW_RUN).join(FILE);
    let ours = !matches!(find(&path)?, Found::Nothing | Found::Foreign);
    let target_ours = matches!(find(&target)?, Found::File(_));
    if dry_run {
        return Ok(ours || target_ours);
    }
    if ours {
        fs::remove_file(&path).map_err(|e| explain(conf_dir, "remove", path, e))?;
    }
    if target_ours {
        fs::remove_file(&target).map_err(|source| CniError::Io { action: "remove", path: target, source })?;
        // Ours alone; it stays if somebody put something into it.
        let _ = fs::remove_dir(run_dir.join(BELOW_RUN));
    }
    Ok(ours || target_ours)
}

/// What is in our place.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Our file: its content.
    File(String),
    /// Our link: where it leads.
    Link(PathBuf),
    /// Somebody else's.
    Foreign,
}

/// What is put into our place.
enum Entry<'a> {
    File(&'a str),
    Link(PathBuf),
}

fn find(path: &Path) -> Result<Found, CniError> {
    let io = |source| CniError::Io { action: "read", path: path.to_owned(), source };
    let meta = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        other => other.map_err(io)?,
    };
    if meta.is_symlink() {
        let target = fs::read_link(path).map_err(io)?;
        let ours = target.ends_with(Path::new(BELOW_RUN).join(FILE));
        return Ok(if ours { Found::Link(target) } else { Found::Foreign });
    }
    // Not a conflist, so not ours; what it says does not matter.
    if !meta.is_file() || meta.len() > MOST_BYTES {
        return Ok(Found::Foreign);
    }
    let content = String::from_utf8_lossy(&fs::read(path).map_err(io)?).into_owned();
    Ok(if is_ours(&content) { Found::File(content) } else { Found::Foreign })
}

fn stands(plan: &CniPlan, found: &Found, content: &str) -> Result<bool, CniError> {
    Ok(match (found, &plan.run_dir) {
        (Found::File(found), None) => found == content,
        (Found::Link(target), Some(run_dir)) if *target == run_dir.target() => {
            find(&run_dir.file())? == Found::File(content.to_owned())
        }
        _ => false,
    })
}

/// Whether the runtime reads a configuration of ours now, whatever it says.
fn is_configuration(plan: &CniPlan, found: &Found) -> Result<bool, CniError> {
    Ok(match (found, &plan.run_dir) {
        (Found::Link(_), Some(run_dir)) => matches!(find(&run_dir.file())?, Found::File(_)),
        (Found::File(_), _) => true,
        _ => false,
    })
}

fn write_target(run_dir: &RunDir, content: &str) -> Result<(), CniError> {
    let path = run_dir.file();
    let folder = run_dir.here.join(BELOW_RUN);
    let write = files::private_dir(&folder).and_then(|()| files::replace(&path, content.as_bytes()));
    write.map_err(|source| CniError::Io { action: "write", path, source })
}

fn replace(dir: &Path, entry: &Entry<'_>) -> Result<(), CniError> {
    let temporary = dir.join(TEMPORARY);
    let write = || -> io::Result<()> {
        // Left over from a crash, perhaps as something else than a file.
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        match entry {
            Entry::Link(target) => symlink(target, &temporary)?,
            Entry::File(content) => {
                let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&temporary)?;
                file.write_all(content.as_bytes())?;
                file.sync_all()?;
            }
        }
        fs::rename(&temporary, dir.join(FILE))?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|e| explain(dir, "write", dir.join(FILE), e))
}

fn explain(dir: &Path, action: &'static str, path: PathBuf, source: io::Error) -> CniError {
    let refused =
        matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotFound);
    if !refused {
        return CniError::Io { action, path, source };
    }
    let found = match fs::metadata(dir) {
        Ok(meta) => format!("owner {}, mode {:o} ({source})", meta.uid(), meta.mode() & 0o7777),
        Err(e) => e.to_string(),
    };
    CniError::NotWritable { dir: dir.to_owned(), found }
}

fn is_ours(content: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(content).is_ok_and(|value| value["name"] == NETWORK)
}

fn is_program(path: &Path) -> bool {
    /// Any of the three execute bits.
    const EXECUTE: u32 = 0o111;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.mode() & EXECUTE != 0)
}

/// The first file that the runtime would read instead of ours.
fn shadow(dir: &Path) -> Option<String> {
    let names = fs::read_dir(dir).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let read = |name: &String| [".conf", ".conflist", ".json"].iter().any(|ending| name.ends_with(ending));
    names.filter(|name| read(name) && name.as_str() < FILE).min()
}
