//! Another program that has to do with the kernel's WireGuard: nlink's own driver, and none of our code.

use std::collections::BTreeMap;

use ipnet::IpNet;
use nlink::{
    Connection, Wireguard,
    netlink::genl::wireguard::{AllowedIp, WgDeviceBuilder},
};
use wgdev::PeerUpdate;
use wire::key::PublicKey;

use super::{
    namespace::Namespace,
    node::{DEVICE, private_key},
};

fn run<T: Send + 'static>(
    namespace: &Namespace,
    work: impl AsyncFnOnce(Connection<Wireguard>) -> nlink::Result<T> + Send + 'static,
) -> nlink::Result<T> {
    namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { work(Connection::new_async().await?).await })
    })
}

/// The allowed IPs of every peer, sorted. Waits out changes that come in between.
pub fn dump(namespace: &Namespace) -> BTreeMap<PublicKey, Vec<IpNet>> {
    let device = loop {
        match run(namespace, async |wireguard| wireguard.get_device_by_name(DEVICE).await) {
            Err(error) if error.is_dump_interrupted() => {}
            device => break device.unwrap(),
        }
    };
    let mut peers = BTreeMap::<_, Vec<IpNet>>::new();
    for peer in device.peers {
        let nets = peer.allowed_ips.iter().map(|net| IpNet::new(net.addr, net.cidr).unwrap());
        peers.entry(PublicKey::from_bytes(peer.public_key)).or_default().extend(nets);
    }
    peers.values_mut().for_each(|nets| nets.sort_unstable());
    peers
}

/// Adds or changes a peer.
pub fn set_peer(namespace: &Namespace, update: PeerUpdate) {
    let PeerUpdate { public_key, endpoint, allowed_ips, keepalive } = update;
    let set = run(namespace, async move |wireguard| {
        let set = wireguard.set_peer_by_name(DEVICE, *public_key.as_bytes(), |mut peer| {
            if let Some(endpoint) = endpoint {
                peer = peer.endpoint(endpoint);
            }
            if let Some(keepalive) = keepalive {
                peer = peer.persistent_keepalive(keepalive.map_or(0, |k| k.as_secs() as u16));
            }
            if let Some(nets) = allowed_ips {
                let nets = nets.iter().map(|net| AllowedIp { addr: net.addr(), cidr: net.prefix_len() });
                peer = peer.replace_allowed_ips().allowed_ips(nets);
            }
            peer
        });
        set.await
    });
    set.unwrap();
}

/// Removes a peer, if there is one.
pub fn remove_peer(namespace: &Namespace, key: PublicKey) {
    run(namespace, async move |wireguard| wireguard.del_peer_by_name(DEVICE, *key.as_bytes()).await).unwrap();
}

/// What of the device itself another program changes.
#[derive(Clone, Copy, Debug)]
pub enum Setting {
    /// The private key, to the one of this seed.
    Key(u8),
    Port(u16),
    Mark(u32),
}

pub fn set_device(namespace: &Namespace, setting: Setting) {
    let change = move |device: WgDeviceBuilder| match setting {
        Setting::Key(seed) => device.private_key(*private_key(seed).expose_bytes()),
        Setting::Port(port) => device.listen_port(port),
        Setting::Mark(mark) => device.fwmark(mark),
    };
    run(namespace, async move |wireguard| wireguard.set_device_by_name(DEVICE, change).await).unwrap();
}
