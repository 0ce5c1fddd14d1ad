//! The records of `host-local`: which address of this node's range a pod has.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::Path;

/// What the records say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reservations {
    /// There are none.
    None,
    /// No pod has an address: what is left is the plugin's own bookkeeping.
    Free,
    /// So many addresses are taken.
    Held(usize),
}

/// Removes the records below `dir` if no pod has an address any more; with `dry_run` only looks.
pub fn release(dir: &Path, dry_run: bool) -> io::Result<Reservations> {
    let networks = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Reservations::None),
        found => found?,
    };
    let mut held = 0;
    for network in networks {
        // One file an address, named by it, beside the plugin's `lock` and `last_reserved_ip.N`.
        let files = fs::read_dir(network?.path())?.filter_map(Result::ok);
        held += files.filter(|file| file.file_name().to_string_lossy().parse::<IpAddr>().is_ok()).count();
    }
    if held > 0 {
        return Ok(Reservations::Held(held));
    }
    if !dry_run {
        fs::remove_dir_all(dir)?;
    }
    Ok(Reservations::Free)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn records_go_once_no_pod_has_an_address() {
        let dir = TempDir::new("reservations");
        let ipam = dir.path().join("ipam");
        assert_eq!(release(&ipam, false).unwrap(), Reservations::None);
        let network = ipam.join("warren");
        fs::create_dir_all(&network).unwrap();
        for file in ["lock", "last_reserved_ip.0", "10.244.1.5", "fd00:244:1::5"] {
            fs::write(network.join(file), "").unwrap();
        }
        assert_eq!(release(&ipam, false).unwrap(), Reservations::Held(2));
        for file in ["10.244.1.5", "fd00:244:1::5"] {
            fs::remove_file(network.join(file)).unwrap();
        }
        assert_eq!(release(&ipam, true).unwrap(), Reservations::Free);
        assert!(network.exists(), "a dry run");
        assert_eq!(release(&ipam, false).unwrap(), Reservations::Free);
        assert!(!ipam.exists());
    }
}
