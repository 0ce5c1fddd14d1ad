//! The content of a file: a header that names the version and a checksum, and the object as JSON.

use blake2::{Blake2s256, Digest};
use serde::{Serialize, de::DeserializeOwned};
use std::{fs, io, path::Path};

/// First word of each file; changes when an older agent could misread the rest.
pub(super) const MAGIC: &str = "warren-cache-1";

/// Larger files than this are not ours: the largest object is a slice of 64 peers with 16 candidates each, below 200 kB.
const MAX_FILE_BYTES: u64 = 4 << 20;

pub(super) fn encode<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    let body = serde_json::to_vec(value)?;
    let mut content = format!("{MAGIC} {}\n", checksum(&body)).into_bytes();
    content.extend_from_slice(&body);
    Ok(content)
}

pub(super) fn decode<T: DeserializeOwned>(content: &[u8]) -> Result<T, &'static str> {
    let end = content.iter().position(|b| *b == b'\n').ok_or("no header")?;
    let (header, body) = (&content[..end], &content[end + 1..]);
    let header = str::from_utf8(header).map_err(|_| "no header")?;
    let sum = header.strip_prefix(MAGIC).and_then(|h| h.strip_prefix(' ')).ok_or("written by another version")?;
    if sum != checksum(body) {
        return Err("the checksum differs");
    }
    serde_json::from_slice(body).map_err(|_| "not what it should hold")
}

fn checksum(body: &[u8]) -> String {
    Blake2s256::digest(body).iter().map(|b| format!("{b:02x}")).collect()
}

pub(super) fn read_capped(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {MAX_FILE_BYTES} bytes")));
    }
    fs::read(path)
}
