//! A table with numbered places and a cap.

#[derive(Debug)]
pub(super) struct Slots<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
    max: usize,
}

impl<T> Slots<T> {
    pub(super) fn new(max: usize) -> Self {
        Self { entries: Vec::new(), free: Vec::new(), max }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.max
    }

    /// Puts in what `make` makes of its place. `None` when the table is full.
    pub(super) fn insert(&mut self, make: impl FnOnce(u32) -> T) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.entries.len()).ok()?;
                self.entries.push(None);
                slot
            }
        };
        self.entries[slot as usize] = Some(make(slot));
        Some(slot)
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<T> {
        let removed = self.entries.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        Some(removed)
    }

    pub(super) fn get(&self, slot: u32) -> Option<&T> {
        self.entries.get(slot as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.entries.get_mut(slot as usize)?.as_mut()
    }
}
