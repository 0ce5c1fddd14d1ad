//! The node's own WireGuard key: made here, kept here, never anywhere else.

use crate::files;
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};
use wire::key::{KEY_BASE64_LEN, PrivateKey};
use zeroize::Zeroizing;

/// The file in the state folder.
pub const FILE_NAME: &str = "private.key";

/// What the state folder says about the key.
#[derive(Debug)]
pub enum Stored {
    /// A good key.
    Present(PrivateKey),
    /// No file: a new node, or somebody deleted it to get a new key.
    Absent,
    /// A file that holds no key. A new key means a new identity, so this is settled only when the API can be told.
    Corrupt(String),
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file can't be read or written.
    #[error("expected to {doing} {path}: {source}; check the disk and the mount of the state folder")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel gave no random bytes.
    #[error("expected random bytes from the kernel: {0}")]
    Random(getrandom::Error),
}

/// The key file of one state folder.
#[derive(Clone, Debug)]
pub struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    /// The key file in this folder.
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(FILE_NAME) }
    }

    /// Reads what is there, narrowing permissions that are too wide.
    pub fn load(&self) -> Result<Stored, KeyFileError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Stored::Absent),
            Err(e) => return Err(self.io_error("open")(e)),
        };
        self.narrow(&file)?;
        // One byte more than a key and its newline tells a longer file; the buffer never grows, so no copy is left behind.
        let mut text = Zeroizing::new([0u8; KEY_BASE64_LEN + 2]);
        let length = read_up_to(file, text.as_mut_slice()).map_err(self.io_error("read"))?;
        Ok(parse(&text[..length]))
    }

    /// Makes a key and keeps it. An old file, good or not, is moved aside first.
    pub fn create(&self) -> Result<PrivateKey, KeyFileError> {
        let mut bytes = Zeroizing::new([0u8; 32]);
        getrandom::fill(bytes.as_mut_slice()).map_err(KeyFileError::Random)?;
        let key = PrivateKey::from_bytes(*bytes);
        if self.path.exists() {
            files::quarantine(&self.path).map_err(self.io_error("move aside"))?;
        }
        let mut text = Zeroizing::new([0u8; KEY_BASE64_LEN + 1]);
        text[..KEY_BASE64_LEN].copy_from_slice(key.to_base64().as_bytes());
        text[KEY_BASE64_LEN] = b'\n';
        files::replace(&self.path, text.as_slice()).map_err(self.io_error("write"))?;
        Ok(key)
    }

    /// Whether somebody took the file away. An error other than "not found" says nothing, so it changes nothing.
    pub fn is_gone(&self) -> bool {
        matches!(std::fs::symlink_metadata(&self.path), Err(e) if e.kind() == io::ErrorKind::NotFound)
    }

    fn narrow(&self, file: &File) -> Result<(), KeyFileError> {
        let mode = file.metadata().map_err(self.io_error("look at"))?.mode();
        if mode & 0o077 == 0 {
            return Ok(());
        }
        tracing::warn!(
            mode = format!("{:o}", mode & 0o777),
            "the key file was readable by others; narrowing it to 0600"
        );
        file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(self.io_error("narrow"))
    }

    fn io_error(&self, doing: &'static str) -> impl FnOnce(io::Error) -> KeyFileError {
        let path = self.path.display().to_string();
        move |source| KeyFileError::Io { doing, path, source }
    }
}

fn parse(text: &[u8]) -> Stored {
    let line = text.strip_suffix(b"\n").unwrap_or(text);
    match str::from_utf8(line).map(PrivateKey::from_base64) {
        Ok(Ok(key)) => Stored::Present(key),
        Ok(Err(e)) => Stored::Corrupt(e.to_string()),
        Err(_) => Stored::Corrupt("expected base64, found other bytes".into()),
    }
}

fn read_up_to(mut file: File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;
    use std::fs;

    #[test]
    fn a_key_is_kept_in_a_private_file_and_found_again() {
        let dir = TempDir::new("key");
        let file = KeyFile::new(dir.path());
        assert!(matches!(file.load().unwrap(), Stored::Absent));
        assert!(file.is_gone());
        let made = file.create().unwrap();
        let mode = fs::metadata(dir.path().join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let Stored::Present(found) = file.load().unwrap() else { panic!("no key") };
        assert_eq!(found.public_key(), made.public_key());
    }

    #[test]
    fn anything_else_than_a_key_is_corrupt_and_is_moved_aside_by_a_new_one() {
        let dir = TempDir::new("corrupt");
        let file = KeyFile::new(dir.path());
        let good = file.create().unwrap().to_base64();
        let path = dir.path().join(FILE_NAME);
        let long = format!("{}{}", &*good, &*good);
        for bad in ["", "\n", &good[..43], &long, "not a key at all, but of a length of forty-four"] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(file.load().unwrap(), Stored::Corrupt(_)), "{bad:?}");
        }
        fs::write(&path, [0xff; 44]).unwrap();
        assert!(matches!(file.load().unwrap(), Stored::Corrupt(_)));
        file.create().unwrap();
        assert!(matches!(file.load().unwrap(), Stored::Present(_)));
        assert_eq!(fs::read(dir.path().join("private.key.corrupt")).unwrap(), [0xff; 44]);
    }

    #[test]
    fn wide_permissions_are_narrowed() {
        let dir = TempDir::new("wide");
        let file = KeyFile::new(dir.path());
        file.create().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        file.load().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn neither_debug_nor_errors_show_the_key() {
        let dir = TempDir::new("secret");
        let file = KeyFile::new(dir.path());
        let key = file.create().unwrap().to_base64();
        assert!(!format!("{:?}", file.load().unwrap()).contains(&key[..12]));
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, format!("{}x", &key[..43])).unwrap();
        assert!(!format!("{:?}", file.load().unwrap()).contains(&key[..12]));
    }
}
