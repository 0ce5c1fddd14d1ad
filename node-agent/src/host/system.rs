//! The real machine.

use super::{Echo, Host, Programmed, Survey, echo::EchoSockets, listening};
use crate::{
    carry::Carrier,
    cni::{self, CniError, CniPlan},
    net::{self, Changed, Ground, NetPlan, OwnChanges, Problem, Report, Rerouting},
    relays::{Credentials, Link, Relay, last::LastOverTls, link, proxy::Proxies},
    status::conditions::{Cni, Network},
};
use crds::mesh::Backend;
use nlink::{Connection, Route};
use std::{io, net::IpAddr, sync::Arc, time::Duration};
use tokio::{sync::Mutex, time::sleep};
use wgdev::{BoxFuture, Device, DeviceConfig, DeviceError, Kernel, Userspace};
use wire::key::PublicKey;

/// Pause before watching anew when the kernel refuses: a repair every few seconds is better than a busy loop.
const WATCH_RETRY: Duration = Duration::from_secs(5);

/// Kernel and files of this node.
pub struct System {
    originals: net::Originals,
    watch: Mutex<Option<net::Watch>>,
    /// What the last programming left to build on.
    ground: Mutex<Option<Ground>>,
    own: OwnChanges,
    proxies: Proxies,
    last: LastOverTls,
}

impl System {
    /// The machine; `originals` is where the settings that it changes are remembered, `proxies` what leads to relays over TLS, and `last` which
    /// were reached that way.
    pub fn new(originals: net::Originals, proxies: Proxies, last: LastOverTls) -> Self {
        Self { originals, watch: Mutex::default(), ground: Mutex::default(), own: OwnChanges::default(), proxies, last }
    }
}

impl Host for System {
    fn survey<'a>(&'a self, device: &'a str) -> BoxFuture<'a, anyhow::Result<Survey>> {
        Box::pin(async move {
            let underlay = net::underlay(device).await?;
            let own_addresses = addresses(device).await?;
            Ok(Survey { underlay, own_addresses })
        })
    }

    fn open_device(
        &self,
        config: DeviceConfig,
        backend: Backend,
    ) -> BoxFuture<'_, Result<Arc<dyn Device>, DeviceError>> {
        Box::pin(async move {
            let backend = choose(backend, &config.name).await?;
            make_room(&config.name, backend).await?;
            apart(move || match backend {
                wgdev::Backend::Kernel => Ok(Arc::new(Kernel::open(config)?) as Arc<dyn Device>),
                wgdev::Backend::Userspace => Ok(Arc::new(Userspace::open(config)?)),
            })
            .await
        })
    }

    fn standing_port<'a>(&'a self, device: &'a str, key: PublicKey) -> BoxFuture<'a, Option<u16>> {
        let device = device.to_owned();
        Box::pin(async move {
            let port = apart(move || wgdev::kernel::standing_port(&device, key)).await;
            // Whatever is the matter, opening the device says it better.
            port.unwrap_or_default()
        })
    }

    fn program<'a>(&'a self, plan: &'a NetPlan, cni: Option<&'a CniPlan>) -> BoxFuture<'a, anyhow::Result<Programmed>> {
        Box::pin(async move {
            let mut ground = self.ground.lock().await;
            *ground = None;
            let report = net::apply(plan, &self.originals).await?;
            ground.clone_from(&report.ground);
            let cni = cni.map_or(Cni::NotManaged, |cni| publish(cni, &report));
            log(&report);
            let repairs = report.changes.iter().map(|c| c.kind.as_str()).collect();
            Ok(Programmed { network: network(&report), cni, repairs })
        })
    }

    fn reroute<'a>(&'a self, plan: &'a NetPlan, change: &'a Rerouting) -> BoxFuture<'a, anyhow::Result<bool>> {
        Box::pin(async move {
            let ground = self.ground.lock().await;
            let Some(ground) = ground.as_ref() else { return Ok(false) };
            Ok(net::reroute(plan, ground, change, &self.own).await?)
        })
    }

    fn cni_stands(&self, plan: &CniPlan, mtu: u16) -> bool {
        cni::is_published(plan, mtu)
    }

    fn open_echo(&self, device: &str) -> io::Result<Box<dyn Echo>> {
        Ok(Box::new(EchoSockets::open(device)?))
    }

    fn open_carrier(&self, wireguard: u16) -> io::Result<Carrier> {
        Carrier::open(wireguard)
    }

    fn open_link<'a>(
        &'a self,
        credentials: &'a Credentials,
        relay: &'a Relay,
        patience: Duration,
    ) -> BoxFuture<'a, anyhow::Result<Link>> {
        Box::pin(link::open(credentials, relay, &self.proxies, &self.last, patience))
    }

    fn changed(&self) -> BoxFuture<'_, Changed> {
        Box::pin(async {
            let mut watch = self.watch.lock().await;
            loop {
                if watch.is_none() {
                    match net::watch(&self.own).await {
                        Ok(made) => *watch = Some(made),
                        Err(e) => {
                            tracing::warn!(error = %e, "can't watch the host network; looking again by the clock");
                            sleep(WATCH_RETRY).await;
                            return Changed::ALL;
                        }
                    }
                }
                match watch.as_mut() {
                    Some(made) => match made.changed().await {
                        Some(changed) => return changed,
                        None => *watch = None,
                    },
                    None => continue,
                }
                sleep(WATCH_RETRY).await;
            }
        })
    }

    fn listens_on(&self, port: u16) -> bool {
        listening::listens_on(port)
    }
}

/// The backend to use. `Auto` is userspace only if the kernel says that it has no WireGuard: whatever else keeps it from
/// answering must not end the sessions of an interface that stands.
async fn choose(wanted: Backend, name: &str) -> Result<wgdev::Backend, DeviceError> {
    if wanted == Backend::Userspace {
        return Ok(wgdev::Backend::Userspace);
    }
    match apart(wgdev::kernel::available).await {
        Ok(()) => Ok(wgdev::Backend::Kernel),
        Err(error) if wanted == Backend::Kernel => Err(error),
        Err(DeviceError::NoKernelWireGuard { .. }) => Ok(wgdev::Backend::Userspace),
        Err(error) => match net::own_link(name).await {
            Ok(Some((_, wgdev::Backend::Kernel))) => Err(error),
            _ => {
                tracing::warn!(%error, "can't ask the kernel for WireGuard; using the agent's own");
                Ok(wgdev::Backend::Userspace)
            }
        },
    }
}

/// Deletes the interface of that name if the other backend made it. Anybody else's is left, and opening says so.
async fn make_room(name: &str, backend: wgdev::Backend) -> Result<(), DeviceError> {
    let failed = |doing| move |error: net::NetError| DeviceError::Io { doing, source: io::Error::other(error) };
    let found = net::own_link(name).await.map_err(failed("look for the interface of the other backend"))?;
    let Some((index, _)) = found.filter(|(_, made_by)| *made_by != backend) else { return Ok(()) };
    tracing::info!(device = name, to = backend.as_str(), "the mesh device moves to another backend");
    net::delete_link(index).await.map_err(failed("delete the interface of the other backend"))
}

/// Runs what blocks for a moment where it holds up nobody.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DeviceError> + Send + 'static,
) -> Result<T, DeviceError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(DeviceError::Stopped))
}

async fn addresses(device: &str) -> anyhow::Result<Vec<IpAddr>> {
    let connection = Connection::<Route>::new()?;
    let links = connection.get_links().await?;
    let own = links.iter().find(|l| l.name() == Some(device)).map(|l| l.ifindex());
    let addresses = connection.get_addresses().await?;
    let others = addresses.iter().filter(|a| Some(a.ifindex()) != own);
    let mut found: Vec<IpAddr> = others.filter_map(|a| a.primary_address().copied()).filter(can_be_a_peers).collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// Whether a peer could name this address and a datagram get to it. Link-local addresses come and go with every pod, and
/// neither they nor loopback are ever dialled, whosever they are.
fn can_be_a_peers(address: &IpAddr) -> bool {
    let link_local = match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !link_local && !address.to_canonical().is_loopback()
}

fn publish(plan: &CniPlan, report: &Report) -> Cni {
    if plan.pod_cidrs.is_empty() {
        return Cni::Waiting(
            "waits for the pod range of this node; the controller manager gives it (--allocate-node-cidrs)".into(),
        );
    }
    let Some(standing) = report.standing() else { return Cni::Waiting("waits for device and routes".into()) };
    match cni::publish(plan, standing) {
        Ok(published) => match published.shadowed_by {
            Some(file) => Cni::Failed(
                "Shadowed",
                format!(
                    "expected to be the first CNI configuration, found {file} before it; remove that file or set cni.mode to none"
                ),
            ),
            None => Cni::Ready,
        },
        Err(CniError::Unconfirmed) => Cni::Waiting(
            "waits for the API to confirm the pod range of this node, which may be another since it was here".into(),
        ),
        Err(e) => Cni::Failed(reason(&e), e.to_string()),
    }
}

fn reason(error: &CniError) -> &'static str {
    match error {
        CniError::NoPodCidrs => "NoPodCIDRs",
        CniError::Unconfirmed => "Unconfirmed",
        CniError::MissingPlugins { .. } => "PluginsMissing",
        CniError::NotWritable { .. } => "CNIDirNotWritable",
        CniError::NotOurs { .. } => "ForeignFile",
        CniError::Io { .. } => "WriteFailed",
    }
}

fn network(report: &Report) -> Network {
    let mut network = Network { unfit: report.standing().is_none(), ..Network::default() };
    for failure in &report.failures {
        network.failures.push(format!("{} {}: {}", failure.kind.as_str(), failure.what, failure.error));
    }
    for problem in &report.problems {
        let list = match problem {
            Problem::ForwardBlocked { .. } => &mut network.forward_blocked,
            Problem::RouteConflict { .. } => &mut network.conflicts,
            Problem::Sysctl { .. } | Problem::Ipv6Off { .. } => &mut network.sysctls,
        };
        list.push(problem.to_string());
    }
    network.overlaps = report.overlaps.iter().filter(|o| !o.is_expected()).map(ToString::to_string).collect();
    network
}

fn log(report: &Report) {
    for change in &report.changes {
        tracing::debug!(kind = change.kind.as_str(), what = change.what, "changed the host network");
    }
    for failure in &report.failures {
        tracing::debug!(
            kind = failure.kind.as_str(),
            what = failure.what,
            error = failure.error,
            "could not change the host network"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_come_and_go_with_pods_are_no_change_of_the_node() {
        let is_own = |text: &str| can_be_a_peers(&text.parse().unwrap());
        for pods in ["fe80::1c2d:3fff:fe4e:5a6b", "169.254.7.7", "127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert!(!is_own(pods), "{pods}");
        }
        for own in ["192.168.1.10", "2001:db8::1", "fd00::1", "10.244.1.1"] {
            assert!(is_own(own), "{own}");
        }
    }
}
