//! Whose an interface is: what Warren made shows in it, and nothing else is ever deleted.

use nlink::netlink::attr::AttrIter;
use nlink::netlink::messages::LinkMessage;
use nlink::{Connection, Route};
use wgdev::{Backend, kernel::LINK_GROUP};

use super::NetError;

/// `IFLA_TUN_*` of `linux/if_link.h`.
mod tun {
    pub const TYPE: u16 = 3;
    pub const PERSIST: u16 = 6;
    pub const MULTI_QUEUE: u16 = 7;
    /// The value of `TYPE` for packets without Ethernet (`IFF_TUN`).
    pub const LAYER_3: u8 = 1;
}

/// The index of the interface of that name and the backend that made it, if it is ours.
pub async fn own_link(name: &str) -> Result<Option<(u32, Backend)>, NetError> {
    let link = find(name).await?;
    Ok(link.and_then(|link| Some((link.ifindex(), made_by(&link)?))))
}

/// Whether anybody has an interface of that name.
pub async fn link_exists(name: &str) -> Result<bool, NetError> {
    Ok(find(name).await?.is_some())
}

/// Deletes an interface.
pub async fn delete_link(index: u32) -> Result<(), NetError> {
    let route = Connection::<Route>::new().map_err(NetError::netlink("open a route socket"))?;
    match route.del_link_by_index(index).await {
        Err(e) if e.is_no_device() => Ok(()),
        result => result.map_err(NetError::netlink("delete the interface")),
    }
}

/// Looks through all, because nlink warns of a question that has no answer, and because a look-up by name also finds an
/// interface that has it as one more name.
async fn find(name: &str) -> Result<Option<LinkMessage>, NetError> {
    let route = Connection::<Route>::new().map_err(NetError::netlink("open a route socket"))?;
    let links = route.get_links().await.map_err(NetError::netlink("list the interfaces"))?;
    Ok(links.into_iter().find(|link| link.name() == Some(name)))
}

fn made_by(link: &LinkMessage) -> Option<Backend> {
    match link.kind()? {
        "wireguard" if link.group() == Some(LINK_GROUP) => Some(Backend::Kernel),
        "tun" if is_own_tun(link.link_info()?.data()?) => Some(Backend::Userspace),
        _ => None,
    }
}

/// Persistent, layer 3 and with several queues, as hardly any other program makes one: a VPN's has one queue and ends with it.
fn is_own_tun(data: &[u8]) -> bool {
    let has = |kind: u16, value: u8| AttrIter::new(data).any(|(k, payload)| k == kind && payload == [value]);
    has(tun::TYPE, tun::LAYER_3) && has(tun::PERSIST, 1) && has(tun::MULTI_QUEUE, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tun(kind: u8, persist: u8, queues: u8) -> Vec<u8> {
        let attribute = |id: u16, value: u8| [5, 0, id.to_ne_bytes()[0], id.to_ne_bytes()[1], value, 0, 0, 0];
        [attribute(tun::TYPE, kind), attribute(tun::PERSIST, persist), attribute(tun::MULTI_QUEUE, queues)].concat()
    }

    #[test]
    fn only_a_persistent_multi_queue_tun_is_ours() {
        assert!(is_own_tun(&tun(1, 1, 1)));
        for (kind, persist, queues) in [(2, 1, 1), (1, 0, 1), (1, 1, 0)] {
            assert!(!is_own_tun(&tun(kind, persist, queues)), "{kind} {persist} {queues}");
        }
        assert!(!is_own_tun(&[]));
    }
}
