//! Container images without a container engine: each is one static program `FROM scratch`, and all of them are one OCI
//! archive that every node imports.

pub mod oci;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::command;
use oci::Image;

/// Tag of every image of the lab. Not `latest`: that tag alone would make kubelet pull.
pub const TAG: &str = "test";
/// The target of static programs.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Image, the program in it, the package that builds it.
const IMAGES: [(&str, &str, &str); 5] = [
    ("operator", "warren-operator", "operator"),
    ("agent", "warren-agent", "node-agent"),
    ("relay", "warren-relay", "relay"),
    ("lab-pod", "lab-pod", "e2e"),
    ("pause", "lab-pause", "e2e"),
];

/// Which images a lab gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Everything.
    All,
    /// Only what the lab itself needs: no part of Warren.
    LabOnly,
}

/// The full name of an image.
#[must_use]
pub fn reference(image: &str) -> String {
    format!("warren.dev/{image}:{TAG}")
}

/// Compiles the static programs of the images, exactly as `make build` does.
pub fn build_binaries() -> Result<()> {
    let status = command("make", ["-s", "build"]).current_dir(workspace()).status().context("starting make")?;
    if !status.success() {
        bail!("`make build` ended with {status}");
    }
    Ok(())
}

/// Packs Warren's own images from release programs, one archive each, for a registry or a node; returns what was written.
pub fn release(repository: &str, tag: &str) -> Result<Vec<PathBuf>> {
    let out = target_dir().join("images");
    fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
    let ours = IMAGES.into_iter().filter(|(_, _, package)| *package != "e2e");
    ours.map(|(image, program, _)| {
        let binary = target_dir().join(TARGET).join("release").join(program);
        let packed = Image { reference: format!("{repository}/{image}:{tag}"), program: format!("/{program}"), binary };
        let path = out.join(format!("warren-{image}.tar"));
        oci::write(&[packed], File::create(&path).with_context(|| format!("creating {}", path.display()))?)?;
        Ok(path)
    })
    .collect()
}

/// Packs the built programs; the archive is made anew only when one of them is newer.
pub fn archive(set: Set) -> Result<PathBuf> {
    let mut images = Vec::new();
    for (image, program, _) in wanted(set) {
        let binary = binary(program);
        if !binary.exists() {
            bail!("{} is not built: run `make build`", binary.display());
        }
        images.push(Image { reference: reference(image), program: format!("/{program}"), binary });
    }
    // Beside the programs: two checkouts must not test each other's.
    let path = target_dir().join("images").join(if set == Set::All { "all.tar" } else { "lab.tar" });
    let modified = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let newest = images.iter().filter_map(|image| modified(&image.binary)).max();
    if modified(&path) <= newest {
        fs::create_dir_all(path.parent().context("the image folder")?).context("making the image folder")?;
        let next = path.with_extension(format!("{}", std::process::id()));
        oci::write(&images, File::create(&next).with_context(|| format!("creating {}", next.display()))?)?;
        fs::rename(&next, &path).context("finishing the image archive")?;
    }
    Ok(path)
}

/// The folder of the static programs.
#[must_use]
pub fn binary(program: &str) -> PathBuf {
    target_dir().join(TARGET).join("ci").join(program)
}

/// The checkout.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the checkout").into()
}

fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

fn wanted(set: Set) -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    IMAGES.into_iter().filter(move |(_, _, package)| set == Set::All || *package == "e2e")
}
