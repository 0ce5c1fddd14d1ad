//! Writes an OCI image layout as a tar archive. Same programs in, same bytes out: no clock, no user, one order.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::parts::hex;

/// One image: a program and an empty `/tmp`.
#[derive(Clone, Debug)]
pub struct Image {
    /// Name and tag.
    pub reference: String,
    /// Where the program stands in the image; it is the entry point.
    pub program: String,
    /// The static program on this machine.
    pub binary: PathBuf,
}

/// A descriptor of content that the archive holds.
struct Blob {
    digest: String,
    size: usize,
}

/// Writes all images into one archive that `ctr images import` understands.
pub fn write(images: &[Image], out: impl Write) -> Result<()> {
    let mut blobs = BTreeMap::new();
    let manifests = images.iter().map(|image| add_image(&mut blobs, image)).collect::<Result<Vec<_>>>()?;
    let index = json!({"schemaVersion": 2, "mediaType": media("index"), "manifests": manifests});
    let mut archive = Builder::new(out);
    file(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    file(&mut archive, "index.json", 0o644, &serde_json::to_vec(&index)?)?;
    for (digest, content) in &blobs {
        file(&mut archive, &format!("blobs/sha256/{digest}"), 0o644, content)?;
    }
    archive.into_inner().context("finishing the archive")?.flush().context("writing the archive")
}

fn add_image(blobs: &mut BTreeMap<String, Vec<u8>>, image: &Image) -> Result<Value> {
    let binary = fs::read(&image.binary).with_context(|| format!("reading {}", image.binary.display()))?;
    let mut layer = Builder::new(Vec::new());
    directory(&mut layer, "tmp/", 0o1777)?;
    file(&mut layer, image.program.trim_start_matches('/'), 0o755, &binary)?;
    let layer = add(blobs, layer.into_inner().context("packing a layer")?);
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [image.program], "Env": ["PATH=/"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
    });
    let config = add(blobs, serde_json::to_vec(&config)?);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media("manifest"),
        "config": descriptor("config", &config),
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.digest, "size": layer.size}],
    });
    let manifest = add(blobs, serde_json::to_vec(&manifest)?);
    let mut entry = descriptor("manifest", &manifest);
    entry["annotations"] = json!({"io.containerd.image.name": image.reference});
    entry["platform"] = json!({"architecture": "amd64", "os": "linux"});
    Ok(entry)
}

fn media(kind: &str) -> String {
    format!("application/vnd.oci.image.{kind}.v1+json")
}

fn descriptor(kind: &str, blob: &Blob) -> Value {
    json!({"mediaType": media(kind), "digest": blob.digest, "size": blob.size})
}

fn add(blobs: &mut BTreeMap<String, Vec<u8>>, content: Vec<u8>) -> Blob {
    let digest = hex(&Sha256::digest(&content));
    let blob = Blob { digest: format!("sha256:{digest}"), size: content.len() };
    blobs.insert(digest, content);
    blob
}

fn file(archive: &mut Builder<impl Write>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = header(EntryType::Regular, mode);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content).with_context(|| format!("packing {path}"))
}

fn directory(archive: &mut Builder<impl Write>, path: &str, mode: u32) -> Result<()> {
    let mut header = header(EntryType::Directory, mode);
    header.set_size(0);
    archive.append_data(&mut header, path, std::io::empty()).with_context(|| format!("packing {path}"))
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn packed(content: &[u8]) -> Vec<u8> {
        let dir = std::env::temp_dir().join(format!("warren-oci-{}-{}", std::process::id(), content.len()));
        fs::write(&dir, content).unwrap();
        let image = Image { reference: "warren.dev/x:test".into(), program: "/x".into(), binary: dir.clone() };
        let mut out = Vec::new();
        write(&[image], &mut out).unwrap();
        fs::remove_file(dir).unwrap();
        out
    }

    #[test]
    fn the_same_program_gives_the_same_bytes() {
        assert_eq!(packed(b"one"), packed(b"one"));
        assert_ne!(packed(b"one"), packed(b"three"));
    }

    #[test]
    fn every_blob_has_the_digest_of_its_name() {
        let out = packed(b"program");
        let mut archive = tar::Archive::new(&out[..]);
        let mut blobs = 0;
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(digest, hex(&Sha256::digest(&content)));
                blobs += 1;
            }
        }
        assert_eq!(blobs, 3, "layer, configuration, manifest");
    }
}
