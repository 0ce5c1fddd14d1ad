//! Which TCP ports of this machine are listened on, from `/proc/net`.

use std::fs;

/// `TCP_LISTEN` as `/proc/net/tcp` prints it.
const LISTEN: &str = "0A";

/// Whether something listens on this port. A node that serves the Kubernetes API must answer API clients by the underlay,
/// whatever address they asked; the agent can't read Nodes, so it looks for itself.
pub fn listens_on(port: u16) -> bool {
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|path| fs::read_to_string(path).is_ok_and(|t| listed(&t, port)))
}

fn listed(table: &str, port: u16) -> bool {
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, _remote, state) = (fields.next(), fields.next(), fields.next());
        let Some((address, hex)) = local.and_then(|l| l.rsplit_once(':')) else { return false };
        let loopback = matches!(address, "0100007F" | "00000000000000000000000001000000");
        state == Some(LISTEN) && !loopback && u16::from_str_radix(hex, 16) == Ok(port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listeners_that_others_can_reach_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
            0: 00000000:192B 00000000:0000 0A 00000000:00000000 00:00000000\n\
            1: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000\n\
            2: 0A00000A:01BB 0B00000A:D431 01 00000000:00000000 00:00000000\n\
            3: garbage\n";
        assert!(listed(table, 6443));
        assert!(!listed(table, 80), "loopback");
        assert!(!listed(table, 443), "a connection");
        assert!(listed("head\n 0: 00000000000000000000000000000000:192B 0:0 0A\n", 6443));
    }
}
