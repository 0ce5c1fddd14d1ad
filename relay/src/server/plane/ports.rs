//! Ports as edge colours: an allocation gets the smallest port that is free at both of its nodes.
//!
//! Several allocations share a port as long as no node is in two of them, because the relay tells legs on one port apart by their
//! source. At most (degree of one - 1) + (degree of the other - 1) ports are taken when a pair asks, so the smallest free one is
//! below twice the largest degree, which is the least that any colouring needs.

/// What one node has on each port: the allocation's place.
#[derive(Debug)]
pub(super) struct Ports(Vec<Option<u32>>);

impl Ports {
    pub(super) fn new(count: u16) -> Self {
        Self(vec![None; usize::from(count)])
    }

    pub(super) fn set(&mut self, port: u16, allocation: Option<u32>) {
        if let Some(place) = self.0.get_mut(usize::from(port)) {
            *place = allocation;
        }
    }

    pub(super) fn is_free(&self, port: u16) -> bool {
        self.0.get(usize::from(port)).is_some_and(Option::is_none)
    }

    /// The node's allocations, by port.
    pub(super) fn allocations(&self) -> impl Iterator<Item = (u16, u32)> + '_ {
        (0u16..).zip(&self.0).filter_map(|(port, allocation)| Some((port, (*allocation)?)))
    }
}

/// The hint if it is free at both, else the smallest that is.
pub(super) fn pick(one: &Ports, other: &Ports, hint: Option<u16>) -> Option<u16> {
    let both = |&port: &u16| one.is_free(port) && other.is_free(port);
    hint.filter(both).or_else(|| (0..one.0.len() as u16).find(both))
}
