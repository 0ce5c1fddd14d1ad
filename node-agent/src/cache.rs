//! What this node was told last, on disk: the data plane is programmed from it before the API answers, or without it.
//!
//! One file an object, each with a header that names the version and a checksum of the rest. A file that doesn't add up is moved
//! aside and treated as absent; the API will tell it again. Writing is left to a thread of its own, since a slow disk
//! must not hold up packets, and only the newest content of each file is written.

use crate::files;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    thread,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;

mod clock;
mod format;
mod writer;

use clock::Clock;
use format::{decode, encode, read_capped};
use writer::{Queue, RETRY, Writer};

/// Files kept at most: 2,000 nodes are 32 slices, so this is far above any mesh that works, and below what hurts a disk.
const MAX_FILES: usize = 1024;

/// Name of a cached object, which is its file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The one object of a kind.
    pub fn single(kind: &'static str) -> Self {
        Self(kind.into())
    }

    /// One of several objects of a kind. `None` for a name that could leave the folder; the API server lets none through.
    pub fn of(kind: &'static str, name: &str) -> Option<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        let fits = !name.is_empty() && name.len() <= 200 && name.chars().all(plain) && !name.starts_with('.');
        fits.then(|| Self(format!("{kind}@{name}")))
    }
}

/// The folder with the cached objects.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
    queue: Arc<Queue>,
    failed: watch::Receiver<Option<String>>,
    clock: Clock,
}

impl Cache {
    /// Opens the folder, making it if needed, and starts the thread that writes.
    pub fn open(folder: &Path) -> io::Result<Self> {
        Self::open_with(folder, RETRY)
    }

    fn open_with(folder: &Path, retry: Duration) -> io::Result<Self> {
        files::private_dir(folder)?;
        let clock = Clock::of(folder);
        let (report, failed) = watch::channel(None);
        let queue = Arc::new(Queue::default());
        let writer = Writer { folder: folder.into(), queue: queue.clone(), report, retry };
        thread::Builder::new().name("cache".into()).spawn(move || writer.run())?;
        Ok(Self { folder: folder.into(), queue, failed, clock })
    }

    /// What the disk refused last, until everything is on it.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failed.clone()
    }

    /// What is wrong with this machine's clock at `now`, judged by what an agent wrote here before this one started.
    pub fn clock_behind(&self, now: SystemTime) -> Option<String> {
        self.clock.behind(now)
    }

    /// Reads an object, be it still on its way to the disk or refused by it. A file that can't be trusted is moved aside and counts as absent.
    pub fn load<T: DeserializeOwned>(&self, name: &Name) -> Option<T> {
        let path = self.folder.join(&name.0);
        let waiting = self.queue.lock().newest(name).cloned();
        if let Some(waiting) = waiting {
            return waiting.and_then(|content| decode(&content).ok());
        }
        let content = match read_capped(&path) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
            Err(e) => {
                tracing::warn!(file = name.0, error = %e, "a cached object can't be read");
                return None;
            }
        };
        match decode(&content) {
            Ok(value) => Some(value),
            Err(why) => {
                tracing::warn!(file = name.0, why, "a cached object is corrupt; moved it aside");
                // If even that fails, the next write replaces it.
                let _ = files::quarantine(&path);
                None
            }
        }
    }

    /// The names of all cached objects of a kind, sorted.
    pub fn names(&self, kind: &str) -> Vec<Name> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let prefix = format!("{kind}@");
        let ours = |name: &String| name.starts_with(&prefix) && !name.ends_with(".corrupt") && !name.ends_with(".tmp");
        let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).filter(ours).take(MAX_FILES);
        let mut names: Vec<Name> = names.map(Name).collect();
        names.sort();
        names
    }

    /// Writes an object soon; a newer write of the same name replaces a waiting one.
    pub fn store<T: Serialize>(&self, name: &Name, value: &T) {
        match encode(value) {
            Ok(content) => self.enqueue(name, Some(content)),
            Err(e) => tracing::warn!(file = name.0, error = %e, "an object can't be cached"),
        }
    }

    /// Removes an object soon.
    pub fn remove(&self, name: &Name) {
        self.enqueue(name, None);
    }

    /// Waits until everything asked for is on disk, or has failed.
    pub fn flush(&self) {
        let mut pending = self.queue.lock();
        while pending.writing.is_some() || !pending.files.is_empty() {
            pending = self.queue.wake.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn enqueue(&self, name: &Name, content: Option<Vec<u8>>) {
        let mut pending = self.queue.lock();
        if pending.files.len() < MAX_FILES || pending.files.contains_key(name) {
            pending.files.insert(name.clone(), content);
            pending.refused.remove(name);
            self.queue.wake.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{format::MAGIC, *};
    use crate::testing::TempDir;
    use std::time::Instant;

    fn open() -> (TempDir, Cache) {
        let dir = TempDir::new("cache");
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        (dir, cache)
    }

    #[test]
    fn objects_come_back_as_they_were_also_to_another_process() {
        let (dir, cache) = open();
        let (mesh, slice) = (Name::single("mesh"), Name::of("slice", "peers-0").unwrap());
        cache.store(&mesh, &vec![1u8, 2]);
        cache.store(&slice, &"first");
        cache.store(&slice, &"second");
        cache.flush();
        let again = Cache::open(&dir.path().join("cache")).unwrap();
        assert_eq!(again.load::<Vec<u8>>(&mesh).unwrap(), [1, 2]);
        assert_eq!(again.names("slice"), std::slice::from_ref(&slice));
        assert_eq!(again.load::<String>(&slice).unwrap(), "second");
        cache.remove(&slice);
        cache.flush();
        assert!(again.load::<String>(&slice).is_none());
    }

    #[test]
    fn a_flipped_bit_a_cut_and_another_version_are_absent_and_set_aside() {
        let (_dir, cache) = open();
        let name = Name::single("mesh");
        cache.store(&name, &"a value of some length");
        cache.flush();
        let path = cache.folder.join("mesh");
        let good = fs::read(&path).unwrap();
        // Inside the text, where it is another value and JSON all the same.
        let mut flipped = good.clone();
        let letter = flipped.len() - 5;
        flipped[letter] ^= 1;
        let other = [b"warren-cache-2 ", &good[MAGIC.len() + 1..]].concat();
        for bad in [&flipped[..], &good[..good.len() - 3], &other, b"", b"{}"] {
            fs::write(&path, bad).unwrap();
            assert!(cache.load::<String>(&name).is_none(), "{bad:?}");
            assert!(!path.exists());
            assert_eq!(fs::read(cache.folder.join("mesh.corrupt")).unwrap(), bad);
        }
    }

    #[test]
    fn what_is_being_written_is_what_is_there() {
        let dir = TempDir::new("cache");
        let (report, failed) = watch::channel(None);
        let (folder, queue) = (dir.path().to_owned(), Arc::new(Queue::default()));
        // No thread: the test itself stops in the middle of a write.
        let cache = Cache { clock: Clock::of(&folder), folder: folder.clone(), queue: queue.clone(), failed };
        let writer = Writer { folder, queue, report, retry: RETRY };
        let name = Name::single("mesh");
        cache.store(&name, &1);
        writer.next(Instant::now());
        assert_eq!(cache.load::<u8>(&name), Some(1));
        cache.store(&name, &2);
        assert_eq!(cache.load::<u8>(&name), Some(2));
    }

    #[test]
    fn a_value_of_another_shape_is_absent() {
        let (_dir, cache) = open();
        let name = Name::single("mesh");
        cache.store(&name, &7u32);
        cache.flush();
        assert!(cache.load::<String>(&name).is_none());
    }

    #[test]
    fn a_disk_that_refuses_is_reported_and_so_is_its_recovery() {
        let (_dir, cache) = open();
        let failure = cache.failure();
        let folder = cache.folder.clone();
        fs::remove_dir(&folder).unwrap();
        fs::write(&folder, "a file where the folder was").unwrap();
        cache.store(&Name::single("mesh"), &1);
        cache.flush();
        assert!(failure.borrow().is_some());
        fs::remove_file(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        cache.store(&Name::single("mesh"), &2);
        cache.flush();
        assert!(failure.borrow().is_none());
    }

    #[tokio::test]
    async fn what_the_disk_refused_is_written_once_it_can_be_and_known_meanwhile() {
        let dir = TempDir::new("cache-retry");
        let folder = dir.path().join("cache");
        let cache = Cache::open_with(&folder, Duration::from_millis(20)).unwrap();
        let mut failure = cache.failure();
        let (mesh, node) = (Name::single("mesh"), Name::single("node"));
        // A folder in the place of the file: that one alone can't be written.
        fs::create_dir_all(folder.join("mesh/full")).unwrap();
        cache.store(&mesh, &1);
        cache.flush();
        cache.store(&node, &2);
        cache.flush();
        assert!(failure.borrow_and_update().is_some(), "another file's success says nothing");
        assert_eq!(cache.load::<u8>(&mesh), Some(1));
        fs::remove_dir_all(folder.join("mesh")).unwrap();
        tokio::time::timeout(Duration::from_secs(20), failure.wait_for(Option::is_none)).await.unwrap().unwrap();
        assert_eq!(Cache::open(&folder).unwrap().load::<u8>(&mesh), Some(1));
    }

    #[test]
    fn a_name_cannot_leave_the_folder() {
        for bad in ["", "..", "../x", "a/b", ".hidden", "A"] {
            assert!(Name::of("slice", bad).is_none(), "{bad}");
        }
    }
}
