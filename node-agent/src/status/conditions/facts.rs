//! What conditions are made of.

use crate::paths::Summary;
use topology::spec::AdmissionState;
use wgdev::DeviceError;

/// What is known of this node; everything a condition is made of.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What the operator said of our key.
    pub admission: Admission,
    /// The device's MTU, or why there is none. `None` before it was tried.
    pub device: Option<Result<u16, DeviceProblem>>,
    /// The smallest MTU of the underlay.
    pub underlay_mtu: Option<u32>,
    /// Host candidates found.
    pub host_candidates: usize,
    /// Server-reflexive candidates found.
    pub reflexive_candidates: usize,
    /// STUN servers that were asked.
    pub stun_servers: usize,
    /// Result of the last change of the host network; `None` before the first.
    pub network: Option<Network>,
    /// The CNI file.
    pub cni: Cni,
    /// Paths to the peers.
    pub paths: Summary,
    /// Why the public port of a relay on this node does not lead to it.
    pub tls_port_taken: Option<String>,
    /// What the mass-removal guard holds back.
    pub guard: Option<String>,
    /// Why it looks as if somebody were undoing our work.
    pub contended: Option<String>,
    /// Why the state folder can't be written.
    pub not_persisted: Option<String>,
    /// What is wrong with the clock.
    pub clock_behind: Option<String>,
}

/// Why there is no device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceProblem {
    /// One word.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

/// An admin demands the kernel's WireGuard, and the kernel has none. Also the type of a condition.
pub(super) const NO_KERNEL_WIREGUARD: &str = "NoKernelWireGuard";

impl From<&DeviceError> for DeviceProblem {
    fn from(error: &DeviceError) -> Self {
        let reason = match error {
            DeviceError::NoKernelWireGuard { .. } => NO_KERNEL_WIREGUARD,
            _ => "DeviceFailed",
        };
        Self { reason, message: error.to_string() }
    }
}

/// What the operator decided, as far as this node is concerned.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    /// Its verdict.
    pub state: AdmissionState,
    /// The admitted key is ours.
    pub own_key: bool,
    /// A slice names this node with that key.
    pub listed: bool,
    /// Why, in one word.
    pub reason: Option<String>,
    /// Why, in one sentence.
    pub message: String,
    /// An admin took the node out.
    pub suspended: bool,
    /// The spec has mesh addresses.
    pub has_addresses: bool,
}

/// Result of the last change of the host network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// What failed concerns the whole node, not one peer.
    pub unfit: bool,
    /// What could not be done.
    pub failures: Vec<String>,
    /// Somebody's rule or route stands before ours.
    pub conflicts: Vec<String>,
    /// Somebody drops what is forwarded.
    pub forward_blocked: Vec<String>,
    /// Global settings that only an admin can make.
    pub sysctls: Vec<String>,
    /// What the node's own network keeps.
    pub overlaps: Vec<String>,
}

/// The CNI file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cni {
    /// Another program configures pods.
    #[default]
    NotManaged,
    /// The device or the pod ranges are not there yet.
    Waiting(String),
    /// Published.
    Ready,
    /// Refused or failed: reason and message.
    Failed(&'static str, String),
}
