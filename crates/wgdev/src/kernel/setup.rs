//! From nothing, or from what a former process left, to a configured interface.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use nlink::{
    Connection, Route,
    netlink::{
        MessageBuilder,
        link::LinkConfig,
        messages::LinkMessage,
        types::link::{IflaAttr, IflaInfo},
    },
};
use socket2::{Domain, Protocol, Socket, Type};
use wire::key::PublicKey;

use super::{
    LINK_GROUP,
    genl::{Genl, Settings, failed},
    plan::Known,
};
use crate::{DeviceConfig, DeviceError, check::check_interface};

/// What the kernel calls our kind of interface.
const KIND: &str = "wireguard";

/// Asks for an interface that bears our mark from its first moment on, wherever this process may end.
struct Marked<'a>(&'a str);

impl LinkConfig for Marked<'_> {
    fn name(&self) -> &str {
        self.0
    }

    fn kind(&self) -> &str {
        KIND
    }

    fn write_to(&self, message: &mut MessageBuilder, _: Option<u32>) {
        message.append_attr_str(IflaAttr::Ifname as u16, self.0);
        message.append_attr_u32(IflaAttr::Group as u16, LINK_GROUP);
        let info = message.nest_start(IflaAttr::Linkinfo as u16);
        message.append_attr_str(IflaInfo::Kind as u16, KIND);
        message.nest_end(info);
    }
}

/// An interface that is ours, configured and up.
pub(super) struct Ready {
    pub(super) route: Connection<Route>,
    pub(super) genl: Genl,
    pub(super) if_index: u32,
    pub(super) listen_port: u16,
    pub(super) known: Known,
    /// When the key was set, if it was another before: handshakes until then are void.
    pub(super) rekeyed: Option<Instant>,
}

/// What nobody but us may have changed since [`set_up`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) public_key: PublicKey,
    pub(super) listen_port: u16,
    pub(super) fwmark: u32,
}

/// Adopts the interface of that name, or creates it, and sets what isn't as it should be.
pub(super) async fn set_up(config: &DeviceConfig) -> Result<Ready, DeviceError> {
    let DeviceConfig { name, private_key, listen_port, fwmark, mtu } = config;
    check_interface(name, *mtu)?;
    let genl = Genl::connect().await?;
    let route = Connection::<Route>::new().map_err(failed("open a route socket"))?;
    let found = find(&route, name).await?;
    let adopted = match &found {
        Some(link) => Some(genl.dump(link.ifindex()).await.map_err(failed("read the WireGuard interface"))?),
        None => None,
    };
    let is_marked = found.as_ref().is_none_or(|link| link.group() == Some(LINK_GROUP));
    let key = adopted.as_ref().and_then(|dump| dump.public_key);
    let has_own_key = key == Some(private_key.public_key());
    if !is_marked && !has_own_key && key.is_some() {
        // Somebody's tunnel: to give it our key would end all of its sessions.
        return Err(DeviceError::NameTaken {
            name: name.clone(),
            expected: "a WireGuard interface of Warren's",
            found: "one with another key and without Warren's mark".into(),
        });
    }
    let has_port = adopted.as_ref().is_some_and(|dump| dump.listen_port == *listen_port);
    let is_up = found.as_ref().is_some_and(LinkMessage::is_up);
    if *listen_port != 0 && !(has_port && is_up) {
        // Before anything is made or changed: an interface without its port is worse than none.
        port_is_free(*listen_port)?;
    }
    let link = match found {
        Some(link) => link,
        None => create(&route, name).await?,
    };
    let if_index = link.ifindex();
    let before = adopted.unwrap_or_default();
    let wants_port = *listen_port != 0 && !has_port;
    let settings = Settings {
        private_key: (!has_own_key).then_some(private_key),
        listen_port: wants_port.then_some(*listen_port),
        fwmark: (before.fwmark != *fwmark).then_some(*fwmark),
    };
    let port_taken = |doing| {
        move |error: nlink::Error| {
            if error.is_address_in_use() { DeviceError::PortTaken { port: *listen_port } } else { failed(doing)(error) }
        }
    };
    if !settings.is_empty() {
        let set = genl.set_device(if_index, &settings).await;
        set.map_err(port_taken("configure the WireGuard interface"))?;
    }
    if !is_marked {
        let set = route.set_link_group_by_index(if_index, LINK_GROUP).await;
        set.map_err(failed("mark the interface as Warren's"))?;
    }
    if link.mtu() != Some(u32::from(*mtu)) {
        let set = route.set_link_mtu_by_index(if_index, (*mtu).into()).await;
        set.map_err(failed("set the MTU of the interface"))?;
    }
    if !link.is_up() {
        let set = route.set_link_up_by_index(if_index).await;
        set.map_err(port_taken("bring the interface up"))?;
    }
    let now = genl.dump(if_index).await.map_err(failed("read the WireGuard interface back"))?;
    let known = Known::of(now.peers.values());
    let rekeyed = (!has_own_key).then(Instant::now);
    Ok(Ready { route, genl, if_index, listen_port: now.listen_port, known, rekeyed })
}

/// Whether the interface of this index still has its name, and then whether it is up.
pub(super) async fn is_up(route: &Connection<Route>, if_index: u32, name: &str) -> nlink::Result<Option<bool>> {
    let link = match route.get_link_by_index(if_index).await {
        Err(error) if error.is_no_device() => None,
        link => link?,
    };
    Ok(link.filter(|link| link.name() == Some(name)).map(|link| link.is_up()))
}

/// What the interface itself counts: packets and bytes of all of its peers, handshakes and keepalives among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Traffic(pub(super) [u64; 4]);

/// What went through the interface so far.
pub(super) async fn traffic(route: &Connection<Route>, if_index: u32) -> nlink::Result<Traffic> {
    let link = route.get_link_by_index(if_index).await?;
    let count = |of: fn(&LinkMessage) -> u64| link.as_ref().map_or(0, of);
    Ok(Traffic([
        count(LinkMessage::rx_packets),
        count(LinkMessage::tx_packets),
        count(LinkMessage::rx_bytes),
        count(LinkMessage::tx_bytes),
    ]))
}

/// The port of the interface of that name, if it is WireGuard's, up, and has this key.
pub(super) async fn standing_port(name: &str, key: PublicKey) -> Result<Option<u16>, DeviceError> {
    let route = Connection::<Route>::new().map_err(failed("open a route socket"))?;
    let found = match find(&route, name).await {
        Err(DeviceError::NameTaken { .. }) => None,
        found => found?,
    };
    let Some(link) = found.filter(LinkMessage::is_up) else {
        return Ok(None);
    };
    let dump = Genl::connect().await?.dump(link.ifindex()).await.map_err(failed("read the WireGuard interface"))?;
    Ok((dump.public_key == Some(key)).then_some(dump.listen_port))
}

/// The interface of that name, if it is a WireGuard interface.
async fn find(route: &Connection<Route>, name: &str) -> Result<Option<LinkMessage>, DeviceError> {
    let link = match route.get_link_by_name(name).await {
        Err(error) if error.is_not_found() => None,
        link => link.map_err(failed("look for the interface"))?,
    };
    let Some(link) = link else {
        return Ok(None);
    };
    let found = match (link.name(), link.kind()) {
        (Some(own), _) if own != name => format!("another name of {own}"),
        (_, Some(KIND)) => return Ok(Some(link)),
        (_, Some("tun")) => "a TUN or TAP interface".into(),
        (_, Some(kind)) => format!("an interface of kind {kind:?}"),
        (_, None) => "a network card".into(),
    };
    Err(DeviceError::NameTaken { name: name.into(), expected: "a WireGuard interface of the kernel", found })
}

async fn create(route: &Connection<Route>, name: &str) -> Result<LinkMessage, DeviceError> {
    match route.add_link(Marked(name)).await {
        Err(error) if error.is_not_supported() => {
            return Err(DeviceError::NoKernelWireGuard {
                found: format!("one that can't make an interface ({error})"),
            });
        }
        // Somebody was quicker: what it is, `find` says.
        Err(error) if error.is_already_exists() => {}
        made => made.map_err(failed("create the WireGuard interface (needs NET_ADMIN)"))?,
    }
    find(route, name).await?.ok_or(DeviceError::Stopped)
}

/// Binds the port on both families for a moment, as WireGuard is about to.
fn port_is_free(port: u16) -> Result<(), DeviceError> {
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    for address in any {
        let bind = || -> io::Result<()> {
            let address = SocketAddr::new(address, port);
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&address.into())
        };
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(DeviceError::PortTaken { port }),
            // No such family here: WireGuard does without it too.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            bound => bound.map_err(DeviceError::io("try the UDP port"))?,
        }
    }
    Ok(())
}
