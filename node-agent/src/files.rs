//! Files that survive a crash: written beside, flushed, then renamed over the old one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Makes a folder that only we can enter, or narrows the one that is there.
pub fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Replaces the file by `content`, mode 0600. After a crash at any point either the old or the new content is there, whole.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = with_suffix(path, "tmp");
    let result = write_new(&temporary, content).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        // The first error is the one to report; a stale temporary file is overwritten by the next attempt anyway.
        let _ = fs::remove_file(&temporary);
        return result;
    }
    sync_folder_of(path)
}

/// Moves a file that can't be trusted out of the way, keeping the latest such for whoever wants to look.
pub fn quarantine(path: &Path) -> io::Result<PathBuf> {
    let aside = with_suffix(path, "corrupt");
    fs::rename(path, &aside)?;
    sync_folder_of(path)?;
    Ok(aside)
}

/// When something in the folder was last written, by this machine's clock at that time.
pub fn last_written(folder: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(folder).ok()?;
    entries.filter_map(|entry| entry.ok()?.metadata().ok()?.modified().ok()).max()
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    // A leftover may have wider permissions than `mode` would set on a new file.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let dir = TempDir::new("files");
        let path = dir.path().join("f");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(with_suffix(&path, "tmp"), "leftover of a crash").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!with_suffix(&path, "tmp").exists());
    }

    #[test]
    fn a_quarantined_file_leaves_its_name_free() {
        let dir = TempDir::new("quarantine");
        let path = dir.path().join("f");
        fs::write(&path, "bad").unwrap();
        let aside = quarantine(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read(aside).unwrap(), b"bad");
    }

    #[test]
    fn a_folder_is_narrowed() {
        let dir = TempDir::new("narrow");
        let path = dir.path().join("a/b");
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        private_dir(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
