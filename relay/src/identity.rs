//! The relay's own key: made at the first start, kept in a file.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use channel::Identity;
use zeroize::Zeroizing;

/// Name of the file in the state directory.
const FILE: &str = "identity.key";

/// Bytes read of it: more than a seed in base64 with its newline, so that a longer file is noticed.
const MOST: usize = 64;

/// The identity that the directory holds, or a new one that it holds from now on.
///
/// # Errors
/// When the directory cannot be read or written, or the file holds something else. That is not replaced: nodes that know the relay by
/// the key it had would no longer talk to it.
pub fn load_or_create(directory: &Path) -> anyhow::Result<Identity> {
    let path = directory.join(FILE);
    match read(&path) {
        Ok(identity) => Ok(identity),
        Err(error) if is_missing(&error) => create(directory, &path),
        Err(error) => Err(error),
    }
}

/// The public half as objects show it.
#[must_use]
pub fn to_text(public: &[u8; channel::IDENTITY_LEN]) -> String {
    STANDARD.encode(public)
}

/// The other way; nothing for what is no key.
#[must_use]
pub fn from_text(text: &str) -> Option<[u8; channel::IDENTITY_LEN]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn read(path: &Path) -> anyhow::Result<Identity> {
    let file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mode = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(
            mode = format!("{:o}", mode & 0o777),
            "the identity key was readable by others; narrowing it to 0600"
        );
        let narrow = fs::Permissions::from_mode(0o600);
        file.set_permissions(narrow).with_context(|| format!("cannot narrow {}", path.display()))?;
    }
    // Allocated at full size: growing would leave copies of the secret behind.
    let mut text = Zeroizing::new(Vec::with_capacity(MOST));
    io::Read::read_to_end(&mut io::Read::take(file, MOST as u64), &mut text)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let mut seed = Zeroizing::new([0; channel::IDENTITY_LEN + 1]);
    let decoded = STANDARD.decode_slice(text.trim_ascii_end(), seed.as_mut_slice());
    match (decoded, seed.first_chunk()) {
        (Ok(channel::IDENTITY_LEN), Some(seed)) => Ok(Identity::from_seed(*seed)),
        _ => anyhow::bail!(
            "expected 32 bytes in base64 in {}, found something else; restore the file, or remove it to get a new identity",
            path.display()
        ),
    }
}

/// Written beside and moved into place, so that there is a whole key or none.
fn create(directory: &Path, path: &Path) -> anyhow::Result<Identity> {
    let identity = Identity::generate().context("the system has no random numbers")?;
    let mut text = Zeroizing::new(String::with_capacity(MOST));
    STANDARD.encode_string(identity.seed(), &mut text);
    text.push('\n');
    let beside = directory.join(format!("{FILE}.new"));
    let write = || -> io::Result<()> {
        // What an interrupted start has left. A file that is there is not opened, or it might be read by others.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        fs::File::open(directory)?.sync_all()
    };
    write().with_context(|| {
        format!(
            "cannot keep the identity key in {}; give a --state-dir that this user may write to",
            directory.display()
        )
    })?;
    tracing::info!("made a new identity key");
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of this test alone, removed at the end.
    struct Directory(std::path::PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("relay-identity-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self) -> std::path::PathBuf {
            self.0.join(FILE)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_key_of_the_first_start_stays_and_is_the_owners_alone() {
        let directory = Directory::new("first");
        fs::write(directory.0.join("identity.key.new"), "half").unwrap();
        let first = load_or_create(&directory.0).unwrap();
        assert_eq!(fs::metadata(directory.file()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load_or_create(&directory.0).unwrap().public(), first.public());
        assert_eq!(from_text(&to_text(&first.public())), Some(first.public()));
        fs::remove_file(directory.file()).unwrap();
        assert_ne!(load_or_create(&directory.0).unwrap().public(), first.public());
    }

    #[test]
    fn a_file_that_holds_no_key_is_named_and_left_alone() {
        let directory = Directory::new("wrong");
        for text in ["", "AAAA", &"A".repeat(44), &STANDARD.encode([1; 33]), &STANDARD.encode([1; 60])] {
            fs::write(directory.file(), text).unwrap();
            let error = load_or_create(&directory.0).unwrap_err().to_string();
            assert!(error.contains("expected 32 bytes"), "{error}");
            assert_eq!(fs::read_to_string(directory.file()).unwrap(), text);
        }
    }

    #[test]
    fn a_key_that_others_could_read_is_narrowed() {
        let directory = Directory::new("wide");
        fs::write(directory.file(), STANDARD.encode([1; 32])).unwrap();
        fs::set_permissions(directory.file(), fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(load_or_create(&directory.0).unwrap().seed(), &[1; 32]);
        assert_eq!(fs::metadata(directory.file()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = format!("{:#}", load_or_create(Path::new("/nonexistent")).unwrap_err());
        assert!(error.contains("--state-dir"), "{error}");
    }
}
