//! One authority, a certificate and kubeconfig per identity.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use serde_json::json;

use crate::scenario::{API_PORT, Node, Scenario};
use crate::state::{State, write};

/// Who the API server must be able to prove to be, besides its addresses.
const API_NAMES: [&str; 5] =
    ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"];

/// The lab's authority. Its key stays in memory and in the lab's folder.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
    server: String,
}

impl Authority {
    /// Makes the authority and every identity of the scenario.
    pub fn create(state: &State, scenario: &Scenario) -> Result<()> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = name(&[], "warren-lab");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?).context("signing the authority")?;
        let server = format!("https://{}:{API_PORT}", scenario.api_address());
        let authority = Self { issuer, dir: state.pki(), server };
        authority.save("ca", &authority.issuer.pem(), authority.issuer.key())?;
        let accounts = KeyPair::generate()?;
        write(&authority.path("sa.key"), accounts.serialize_pem())?;
        write(&authority.path("sa.pub"), accounts.public_key_pem())?;
        authority.control_plane(scenario)?;
        scenario.nodes.iter().try_for_each(|node| authority.node(scenario, node))
    }

    fn control_plane(&self, scenario: &Scenario) -> Result<()> {
        let mut names: Vec<String> = API_NAMES.map(String::from).to_vec();
        names.extend([
            scenario.api_address().to_string(),
            scenario.control_plane().v4.addr().to_string(),
            "127.0.0.1".into(),
        ]);
        names.extend(
            scenario.service_cidrs().iter().filter_map(|net| net.hosts().next()).map(|first| first.to_string()),
        );
        self.certify("apiserver", &[], "kube-apiserver", names)?;
        self.certify("apiserver-kubelet", &["system:masters"], "kube-apiserver-kubelet-client", Vec::new())?;
        self.client("admin", &["system:masters"], "admin")?;
        self.client("controller-manager", &[], "system:kube-controller-manager")?;
        self.client("scheduler", &[], "system:kube-scheduler")?;
        self.client("proxy", &[], "system:kube-proxy")
    }

    fn node(&self, scenario: &Scenario, node: &Node) -> Result<()> {
        let mut addresses = vec![IpAddr::V4(node.v4.addr())];
        addresses.extend(scenario.dual_stack.then_some(IpAddr::V6(node.v6.addr())));
        let mut names = vec![node.name.clone()];
        names.extend(addresses.iter().map(ToString::to_string));
        self.certify(&node.name, &["system:nodes"], &format!("system:node:{}", node.name), names)?;
        self.kubeconfig(&node.name)
    }

    fn client(&self, file: &str, groups: &[&str], user: &str) -> Result<()> {
        self.certify(file, groups, user, Vec::new())?;
        self.kubeconfig(file)
    }

    fn certify(&self, file: &str, groups: &[&str], user: &str, names: Vec<String>) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = name(groups, user);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).with_context(|| format!("signing {file}"))?;
        self.save(file, &certificate.pem(), &key)
    }

    fn save(&self, file: &str, certificate: &str, key: &KeyPair) -> Result<()> {
        write(&self.path(&format!("{file}.crt")), certificate)?;
        write(&self.path(&format!("{file}.key")), key.serialize_pem())
    }

    fn kubeconfig(&self, file: &str) -> Result<()> {
        let config = kubeconfig(&self.dir, file, &self.server)?;
        write(&self.path(&format!("{file}.kubeconfig")), config)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }
}

/// A kubeconfig with everything inside, so that it works from any mount namespace.
fn kubeconfig(dir: &Path, user: &str, server: &str) -> Result<String> {
    use base64::Engine;
    let data = |name: String| -> Result<String> {
        let path = dir.join(name);
        let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(base64::engine::general_purpose::STANDARD.encode(content))
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority-data": data("ca.crt".into())?}}],
        "users": [{"name": user, "user": {
            "client-certificate-data": data(format!("{user}.crt"))?,
            "client-key-data": data(format!("{user}.key"))?,
        }}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        "current-context": "lab",
    });
    Ok(serde_json::to_string_pretty(&config)?)
}

/// Kubernetes reads the group from O and the user from CN.
fn name(groups: &[&str], user: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for group in groups {
        name.push(DnType::OrganizationName, *group);
    }
    name.push(DnType::CommonName, user);
    name
}
