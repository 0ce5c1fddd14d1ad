//! Opens the device on the assigned port, on one that it stands on already, or on the next free one.

use super::super::{identity::Identity, intent::Intent};
use crate::host::Host;
use std::sync::Arc;
use wgdev::{Device, DeviceConfig, DeviceError};

/// Ports tried when the assigned one is taken; more than that are never all somebody else's.
const PORT_ATTEMPTS: u16 = 16;

pub(super) async fn open_device(
    host: &dyn Host,
    name: &str,
    identity: &Identity,
    intent: &Intent,
    standing: Option<u16>,
) -> Result<Arc<dyn Device>, DeviceError> {
    let first = intent.device.listen_port;
    let last = intent.last_port.min(first.saturating_add(PORT_ATTEMPTS - 1));
    let mut port = standing.filter(|port| (first..=last).contains(port)).unwrap_or(first);
    loop {
        let config = DeviceConfig {
            name: name.into(),
            private_key: identity.private_key(),
            listen_port: port,
            fwmark: intent.device.fwmark,
            mtu: intent.mtu,
        };
        match host.open_device(config, intent.device.backend).await {
            Err(DeviceError::PortTaken { .. }) if port < last => port += 1,
            Ok(device) => {
                if port != first {
                    tracing::warn!(
                        assigned = first,
                        used = port,
                        "the assigned UDP port is or was taken; using the next free one"
                    );
                }
                return Ok(device);
            }
            Err(e) => return Err(e),
        }
    }
}
