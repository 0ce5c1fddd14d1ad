//! What most peers have nothing to say in.
//!
//! A large mesh has thousands of peers, and most of them are only known: named by the directory, never spoken to. What only a pair in use
//! needs takes a pointer's room until then, and again afterwards.

use std::ops::{Deref, DerefMut};

/// A part of a peer that is as it was made for most peers, most of the time, and then takes no room of its own.
///
/// Whoever reads it sees it as it was made. Whoever borrows it to change it gives it room, which [`Self::put_away`] takes back.
#[derive(Debug)]
pub(crate) struct Seldom<T>(Option<Box<T>>);

/// What can be [`Seldom`].
pub(crate) trait AsMade: Sized + 'static {
    /// The value to begin with.
    const MADE: Self;

    /// That value, to look at.
    fn made() -> &'static Self;

    /// Whether this one is no different from it.
    fn is_as_made(&self) -> bool;
}

impl<T: AsMade> Seldom<T> {
    /// One as it was made.
    pub(crate) const fn made() -> Self {
        Self(None)
    }

    /// Whether it takes no room of its own, and so is as it was made.
    pub(crate) fn is_put_away(&self) -> bool {
        self.0.is_none()
    }

    /// Takes its room back if it is as it was made.
    pub(crate) fn put_away(&mut self) {
        self.0.take_if(|value| value.is_as_made());
    }
}

impl<T: AsMade> Deref for Seldom<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or_else(|| T::made())
    }
}

impl<T: AsMade> DerefMut for Seldom<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_with(|| Box::new(T::MADE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Count(u64);

    impl AsMade for Count {
        const MADE: Self = Self(0);

        fn made() -> &'static Self {
            const { &Self::MADE }
        }

        fn is_as_made(&self) -> bool {
            *self == Self::MADE
        }
    }

    #[test]
    fn it_takes_room_only_while_it_is_not_as_it_was_made() {
        let mut seldom = Seldom::<Count>::made();
        assert_eq!((seldom.0.is_some(), &*seldom), (false, &Count(0)));
        seldom.put_away();
        seldom.0 = None;
        seldom.deref_mut().0 += 2;
        seldom.put_away();
        assert_eq!(seldom.0.as_deref(), Some(&Count(2)));
        seldom.deref_mut().0 = 0;
        seldom.put_away();
        assert_eq!((seldom.0.is_some(), &*seldom), (false, &Count(0)));
        assert_eq!(size_of_val(&seldom), size_of::<usize>());
    }
}
