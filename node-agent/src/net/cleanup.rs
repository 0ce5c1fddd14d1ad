//! Taking away exactly what is ours.

use nlink::netlink::nftables::Family;
use nlink::{Connection, Nftables, Route};

use super::{NFT_TABLE, NetError, Originals, device, routes, rules};

/// Removes our rules, routes, nftables table and the addresses of `device`, gives the underlay's sysctls the values that
/// `originals` remembers, and says what it did; with `dry_run` only says it. The interface itself belongs to whoever made it.
pub async fn cleanup(device: &str, originals: &Originals, dry_run: bool) -> Result<Vec<String>, NetError> {
    let route = Connection::<Route>::new().map_err(NetError::netlink("open a route socket"))?;
    let nft = Connection::<Nftables>::new().map_err(NetError::netlink("open an nftables socket"))?;
    let mut removed = Vec::new();
    rules::remove_all(&route, dry_run, &mut removed).await.map_err(NetError::netlink("remove our rules"))?;
    routes::remove_all(&route, dry_run, &mut removed).await.map_err(NetError::netlink("remove our routes"))?;
    device::remove_addresses(&route, device, dry_run, &mut removed)
        .await
        .map_err(NetError::netlink("remove the device's addresses"))?;
    let tables = nft.list_tables_in(Family::Inet).await.map_err(NetError::netlink("list the nftables tables"))?;
    if tables.iter().any(|t| t.name == NFT_TABLE) {
        if !dry_run {
            nft.del_table_if_exists(NFT_TABLE, Family::Inet)
                .await
                .map_err(NetError::netlink("remove our nftables table"))?;
        }
        removed.push(format!("nftables table inet {NFT_TABLE}"));
    }
    // Last: strict filtering would drop what our own routes still send elsewhere.
    originals
        .restore(&route, dry_run, &mut removed)
        .await
        .map_err(NetError::netlink("restore the underlay's sysctls"))?;
    Ok(removed)
}
