//! Where a lab keeps what it must remember: one folder per lab below the user's state folder, never in the repository.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::scenario::Scenario;

/// Longest lab name: namespaces, cgroups and sockets below it must fit the kernel's limits.
const NAME_MAX: usize = 20;

/// The folder of one lab.
#[derive(Clone, Debug)]
pub struct State {
    name: String,
    dir: PathBuf,
}

impl State {
    /// The folder that a lab of this name has or would have.
    pub fn of(name: &str) -> Result<Self> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(fits) {
            bail!("a lab is named by 1 to {NAME_MAX} lower-case letters, digits and dashes, not {name:?}");
        }
        Ok(Self { name: name.into(), dir: root()?.join(name) })
    }

    /// The lab's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether a lab of this name was started and not taken down.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.dir.exists()
    }

    /// Makes the folder and writes the scenario: from here on `down` has something to find.
    pub fn create(&self, scenario: &Scenario) -> Result<()> {
        for dir in [self.dir.clone(), self.logs(), self.pki(), self.dir.join("run"), self.dir.join("bin")] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .with_context(|| format!("making {}", dir.display()))?;
        }
        write(&self.dir.join("scenario.json"), serde_json::to_string_pretty(scenario)?)
    }

    /// What [`State::create`] wrote.
    pub fn scenario(&self) -> Result<Scenario> {
        let path = self.dir.join("scenario.json");
        let text = fs::read_to_string(&path).with_context(|| {
            format!("no lab {:?} is up ({} is missing); start it with `warren-lab up`", self.name, path.display())
        })?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// Logs of everything outside the nodes.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Keys, certificates and kubeconfigs.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// Everything of one node: its disk, logs and configuration.
    #[must_use]
    pub fn node(&self, node: &str) -> PathBuf {
        self.dir.join("nodes").join(node)
    }

    /// A file that records a running process.
    #[must_use]
    pub fn pid_file(&self, process: &str) -> PathBuf {
        self.dir.join("run").join(format!("{process}.pid"))
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.pki().join("admin.kubeconfig")
    }

    /// Removes the folder.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }
}

/// The folder of all labs.
pub fn root() -> Result<PathBuf> {
    let state = match std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => home()?.join(".local/state"),
    };
    Ok(state.join("warren-lab"))
}

/// The folder of what may be built again: parts and images.
pub fn cache() -> Result<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    if let Some(dir) = var("WARREN_CACHE") {
        return Ok(dir);
    }
    Ok(var("XDG_CACHE_HOME").map_or_else(|| home().map(|home| home.join(".cache")), Ok)?.join("warren"))
}

/// Writes a file and says which one when that fails.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

fn home() -> Result<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from).context("HOME is not set; set it, or XDG_STATE_HOME and WARREN_CACHE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_leave_the_folder_is_refused() {
        for name in ["", "..", "a/b", "A", "a-name-that-is-far-too-long"] {
            assert!(State::of(name).is_err(), "{name:?}");
        }
    }
}
