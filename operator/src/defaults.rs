//! The first `Mesh`: what it says when nobody has written one.

use anyhow::{Context, Result};
use crds::{Mesh, MeshSpec, names::MESH};
use std::{net::Ipv6Addr, path::Path};

/// The longest `--mesh-defaults` file that is read: a spec is a few hundred bytes.
const MAX_BYTES: usize = 64 * 1024;

/// Reads the flag `--mesh-defaults`: a path, or the spec itself as JSON or YAML.
pub fn parse(text: &str) -> Result<MeshSpec> {
    let from_file = Path::new(text).is_file();
    let content = if from_file {
        std::fs::read_to_string(text).with_context(|| format!("read --mesh-defaults {text}"))?
    } else {
        text.to_owned()
    };
    anyhow::ensure!(
        content.len() <= MAX_BYTES,
        "expected --mesh-defaults below {MAX_BYTES} bytes, found {}",
        content.len()
    );
    if content.trim().is_empty() {
        return parse("{}");
    }
    serde_saphyr::from_str(&content)
        .with_context(|| "expected --mesh-defaults to be the spec of a Mesh, as JSON, YAML or the path of such a file")
}

/// The Mesh to make. `random` becomes the unique local range, if the admin chose none (RFC 4193, section 3.2).
pub fn mesh(mut spec: MeshSpec, random: [u8; 5]) -> Mesh {
    spec.addresses.ipv6.get_or_insert_with(|| unique_local(random));
    Mesh::new(MESH, spec)
}

fn unique_local([a, b, c, d, e]: [u8; 5]) -> String {
    let prefix = Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    format!("{prefix}/64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_text_is_all_defaults() {
        for text in ["", "{}", " "] {
            assert_eq!(parse(text).unwrap().addresses.ipv4, "10.118.0.0/16", "{text:?}");
        }
    }

    #[test]
    fn json_yaml_and_files_are_read() {
        let json = r#"{"addresses":{"ipv4":"10.9.0.0/16"},"serviceCIDRs":["10.96.0.0/12"]}"#;
        let yaml = "addresses: {ipv4: 10.9.0.0/16}\nserviceCIDRs: [10.96.0.0/12]\n";
        let file = std::env::temp_dir().join(format!("warren-mesh-defaults-{}", std::process::id()));
        std::fs::write(&file, yaml).unwrap();
        let spec = parse(json).unwrap();
        assert_eq!(spec.addresses.ipv4, "10.9.0.0/16");
        assert_eq!(spec, parse(yaml).unwrap());
        assert_eq!(spec, parse(&file.display().to_string()).unwrap());
        std::fs::remove_file(file).unwrap();
        assert!(format!("{:#}", parse("no-such-file.yaml").unwrap_err()).contains("--mesh-defaults"));
    }

    #[test]
    fn a_unique_local_range_is_drawn_unless_one_is_given() {
        let drawn = mesh(MeshSpec::default(), [0x12, 0x34, 0x56, 0x78, 0x9a]);
        assert_eq!(drawn.spec.addresses.ipv6.as_deref(), Some("fd12:3456:789a::/64"));
        let given = parse(r#"{"addresses":{"ipv6":"fd00::/64"}}"#).unwrap();
        assert_eq!(mesh(given, [0; 5]).spec.addresses.ipv6.as_deref(), Some("fd00::/64"));
    }
}
