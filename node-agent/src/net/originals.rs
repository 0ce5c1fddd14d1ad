//! What sysctls of the underlay were before they were changed, so that a cleanup puts them back.
//!
//! They are remembered in the runtime folder: a reboot empties it and gives every interface its configured settings again,
//! so a record never outlives what it speaks of. One line a setting: interface, name, value before, value after.

use std::fmt::{self, Write};
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use nlink::netlink::devconf::Ipv4Devconf;
use nlink::{Connection, Route};

use crate::files;

/// More than any node has interfaces and settings; a foreign file is not read further.
const MOST: usize = 256;

/// The record of this boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Originals {
    path: PathBuf,
}

/// One changed setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub device: String,
    pub name: Ipv4Devconf,
    pub before: u32,
    pub after: u32,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.device, self.name.name(), self.before, self.after)
    }
}

impl Originals {
    /// The record in this file, whether it exists or not.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Adds what is about to be changed. Of two changes of one setting the later counts: in between, somebody gave it the
    /// value that is overwritten now.
    pub(super) fn remember(&self, changed: Vec<Setting>) -> io::Result<()> {
        let mut all = self.read()?;
        all.retain(|old| !changed.iter().any(|new| (&new.device, new.name) == (&old.device, old.name)));
        all.extend(changed);
        let text = all.iter().fold(String::new(), |mut text, setting| {
            let _ = writeln!(text, "{setting}");
            text
        });
        files::replace(&self.path, text.as_bytes())
    }

    /// Gives every setting that still has our value the one it had before, or says which it would; then forgets.
    pub(super) async fn restore(
        &self,
        conn: &Connection<Route>,
        dry_run: bool,
        report: &mut Vec<String>,
    ) -> nlink::Result<()> {
        for Setting { device, name, before, after } in self.read()? {
            let link = conn.get_links().await?.into_iter().find(|link| link.name() == Some(&device));
            let Some(link) = link.filter(|link| link.ipv4_devconf(name) == Some(after)) else { continue };
            if !dry_run {
                conn.set_ipv4_devconf_by_index(link.ifindex(), &[(name, before)]).await?;
            }
            report.push(format!("sysctl net.ipv4.conf.{}.{}={after}: {before} again", dotless(&device), name.name()));
        }
        if dry_run {
            return Ok(());
        }
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Lines that say nothing are left out: a record is no reason to fail.
    fn read(&self) -> io::Result<Vec<Setting>> {
        match std::fs::read_to_string(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e),
            Ok(text) => Ok(text.lines().filter_map(parse).take(MOST).collect()),
        }
    }
}

fn parse(line: &str) -> Option<Setting> {
    let mut words = line.split(' ');
    Some(Setting {
        device: words.next()?.to_owned(),
        name: Ipv4Devconf::from_name(words.next()?)?,
        before: words.next()?.parse().ok()?,
        after: words.next()?.parse().ok()?,
    })
}

/// A dot separates the parts of a sysctl's name, so the one in an interface's name is written as a slash.
fn dotless(device: &str) -> String {
    device.replace('.', "/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    fn setting(device: &str, before: u32) -> Setting {
        Setting { device: device.into(), name: Ipv4Devconf::RpFilter, before, after: 2 }
    }

    #[test]
    fn a_record_is_read_back_and_the_later_change_of_a_setting_counts() {
        let dir = TempDir::new("originals");
        let originals = Originals::new(dir.path().join("sysctls"));
        assert_eq!(originals.read().unwrap(), []);
        originals.remember(vec![setting("eth0", 1), setting("eth1.7", 1)]).unwrap();
        originals.remember(vec![setting("eth0", 0)]).unwrap();
        assert_eq!(originals.read().unwrap(), [setting("eth1.7", 1), setting("eth0", 0)]);
    }

    #[test]
    fn what_is_no_record_is_left_out() {
        let dir = TempDir::new("no-originals");
        let path = dir.path().join("sysctls");
        std::fs::write(&path, "eth0\neth0 nonsense 1 2\n\neth0 rp_filter 1 2\neth0 rp_filter x 2\n").unwrap();
        assert_eq!(Originals::new(path).read().unwrap(), [setting("eth0", 1)]);
    }
}
