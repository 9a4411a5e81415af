//! The live share of the new cluster: what the file declares and what is in force. Both are read together without a
//! lock, and [`Weight::set`] is the one place where they change.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::config::Percent;

/// The share of one service, shared by every snapshot that has this service.
#[derive(Debug)]
pub struct Weight {
    // Declared in the upper half, effective in the lower one: a reader never sees one of each.
    shares: AtomicU32,
}

/// A change of the share in force, to be audited by whoever caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The effective share before.
    pub from: Percent,
    /// The effective share now.
    pub to: Percent,
}

impl Weight {
    /// A share that is in force as declared.
    pub fn new(declared: Percent) -> Self {
        Self { shares: AtomicU32::new(pack(declared, declared)) }
    }

    /// The share that the file declares.
    pub fn declared(&self) -> Percent {
        unpack(self.shares.load(Ordering::Relaxed) >> 16)
    }

    /// The share in force.
    pub fn effective(&self) -> Percent {
        unpack(self.shares.load(Ordering::Relaxed))
    }

    /// Sets both shares; gives the change of the effective one, if it changed.
    pub fn set(&self, declared: Percent, effective: Percent) -> Option<Change> {
        let before = unpack(self.shares.swap(pack(declared, effective), Ordering::Relaxed));
        (before != effective).then_some(Change { from: before, to: effective })
    }
}

fn pack(declared: Percent, effective: Percent) -> u32 {
    u32::from(declared.basis_points()) << 16 | u32::from(effective.basis_points())
}

fn unpack(half: u32) -> Percent {
    Percent::from_basis_points(half as u16).expect("only shares are packed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percent(value: u16) -> Percent {
        Percent::from_basis_points(value).expect("at most 10 000")
    }

    #[test]
    fn a_change_is_told_once() {
        let weight = Weight::new(percent(2_000));

        assert_eq!(
            weight.set(percent(2_000), percent(5_000)),
            Some(Change { from: percent(2_000), to: percent(5_000) })
        );
        assert_eq!(weight.set(percent(3_000), percent(5_000)), None);
        assert_eq!((weight.declared(), weight.effective()), (percent(3_000), percent(5_000)));
    }

    #[test]
    fn both_ends_survive_packing() {
        let weight = Weight::new(Percent::ZERO);
        weight.set(Percent::HUNDRED, Percent::ZERO);
        assert_eq!((weight.declared(), weight.effective()), (Percent::HUNDRED, Percent::ZERO));
    }
}
