//! Putting machines into the world.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use path::Forbidden;
use wire::PrivateKey;

use super::World;
use crate::device::Device;
use crate::internet::{BoxId, CORE, RealmId};
use crate::middlebox::{Behaviour, Filtering, Mapping};
use crate::node::Node;
use crate::site::Site;

/// The port of every STUN server.
const STUN_PORT: u16 = 3478;
/// Added to the address of a neighbour, so that nobody else gets it.
const NEIGHBOURS: usize = 100;
/// The first address in homes: all of them have the same network, as homes do.
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 10));
/// The first address between a provider's NAT and the homes behind it.
const BETWEEN: IpAddr = IpAddr::V4(Ipv4Addr::new(100, 64, 0, 10));
/// The port of the first node; later ones count up, as the operator assigns them.
const FIRST_PORT: u16 = 21_820;

impl World {
    /// Two observers at addresses of their own.
    pub(super) fn add_stun(&mut self) {
        for last in [1, 2] {
            let address = IpAddr::from([192, 0, 2, last]);
            self.internet.attach_stun(address);
            self.stun.push(SocketAddr::new(address, STUN_PORT));
        }
    }

    /// Adds a machine at a site of its own. It does nothing before it is started.
    pub fn add_node(&mut self, site: Site) -> usize {
        let index = self.nodes.len();
        let outside = public(index);
        let (realm, boxes, address) = self.build_site(site, index, outside);
        self.place(site, realm, boxes, address, outside)
    }

    /// Adds a machine to the network that another one stands in.
    pub fn add_neighbour(&mut self, of: usize) -> usize {
        let index = self.nodes.len();
        let host = &self.nodes[of];
        let (site, realm, boxes) = (host.site, host.realm, host.boxes.clone());
        let base = host.addresses[0];
        let address = numbered(base.addr(), NEIGHBOURS + index);
        // Where nothing is translated, an address of its own is what it is seen at.
        let outside = if base.addr() == host.outside { address } else { host.outside };
        let address = net(address, base.prefix_len());
        self.place(site, realm, boxes, address, outside)
    }

    /// Adds a machine in a home of its own, like that of another one behind the same provider's NAT.
    ///
    /// # Panics
    /// When that one stands behind no provider.
    pub fn add_customer(&mut self, of: usize) -> usize {
        let index = self.nodes.len();
        let host = &self.nodes[of];
        let (site, outside) = (host.site, host.outside);
        let (Some(behaviour), &[near, far]) = (site.behaviour(), &host.boxes[..]) else {
            panic!("n{of} stands behind no provider");
        };
        let middle = self.internet.outside_of(near);
        let (realm, own) = self.internet.add_realm(middle, behaviour, numbered(BETWEEN, index), false);
        self.place(site, realm, vec![own, far], net(numbered(HOME, index), 24), outside)
    }

    /// Gives a machine one more address in the network that it stands in. Its agent learns of it when it starts.
    pub fn add_address(&mut self, node: usize, address: IpNet) {
        let machine = &mut self.nodes[node];
        machine.addresses.push(address);
        machine.forbidden.own_addresses.push(address.addr());
        self.internet.attach_node(machine.realm, address.addr(), node);
    }

    fn build_site(&mut self, site: Site, index: usize, outside: IpAddr) -> (RealmId, Vec<BoxId>, IpNet) {
        match (site, site.behaviour()) {
            (Site::Home(..) | Site::Poisonable, Some(behaviour)) => {
                let (realm, id) = self.internet.add_realm(CORE, behaviour, outside, false);
                (realm, vec![id], net(numbered(HOME, index), 24))
            }
            (Site::Cgnat(..), Some(behaviour)) => {
                let provider = Behaviour::nat(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent);
                let (middle, far) = self.internet.add_realm(CORE, provider, outside, false);
                let between = numbered(BETWEEN, index);
                let (realm, near) = self.internet.add_realm(middle, behaviour, between, false);
                (realm, vec![near, far], net(numbered(HOME, index), 24))
            }
            (_, Some(behaviour)) => {
                let (realm, id) = self.internet.add_realm(CORE, behaviour, outside, false);
                (realm, vec![id], net(outside, 32))
            }
            (_, None) => (CORE, Vec::new(), net(outside, 32)),
        }
    }

    fn place(&mut self, site: Site, realm: RealmId, boxes: Vec<BoxId>, address: IpNet, outside: IpAddr) -> usize {
        let index = self.nodes.len();
        let secret = self.random.bytes();
        let key = PrivateKey::from_bytes(secret).public_key();
        self.internet.attach_node(realm, address.addr(), index);
        let forces_handshakes = self.random.percent(50);
        self.nodes.push(Node {
            site,
            key,
            secret,
            realm,
            boxes,
            addresses: vec![address],
            outside,
            port: FIRST_PORT + u16::try_from(index).unwrap_or(0),
            engine: None,
            device: Device::new(key, forces_handshakes),
            forbidden: forbidden(address.addr()),
            starts: 0,
            counted: Duration::ZERO,
            heard: Duration::ZERO,
            published: None,
            publications: 0,
            idle: None,
            bells: std::collections::BTreeMap::new(),
            waiting: std::collections::BTreeMap::new(),
            sent: 0,
            cache: std::collections::BTreeMap::new(),
            powered: true,
            plugged: true,
            relays: std::collections::BTreeMap::new(),
            pinged: std::collections::BTreeSet::new(),
            ledger: std::collections::BTreeMap::new(),
        });
        index
    }
}

/// What every node is told never to dial.
fn forbidden(own: IpAddr) -> Forbidden {
    let network = |text: &str| text.parse::<IpNet>().expect("a literal network");
    Forbidden {
        networks: vec![network("10.42.0.0/16"), network("10.43.0.0/16"), network("10.21.0.0/16")],
        own_addresses: vec![own, IpAddr::from([10, 42, 0, 1])],
        api_servers: vec![SocketAddr::new(public(0), 6443)],
    }
}

fn public(index: usize) -> IpAddr {
    numbered(IpAddr::from([198, 51, 100, 10]), index)
}

fn numbered(base: IpAddr, index: usize) -> IpAddr {
    let IpAddr::V4(v4) = base else {
        return base;
    };
    IpAddr::from(Ipv4Addr::from(u32::from(v4) + u32::try_from(index).unwrap_or(0)))
}

fn net(address: IpAddr, prefix: u8) -> IpNet {
    IpNet::new(address, prefix).expect("a prefix length that fits the family")
}
