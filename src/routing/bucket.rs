//! A key's fixed position between 0.00 and 99.99, the same in every replica and version. A request goes to new when its
//! position lies below the share, so raising the share never moves anybody back.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::config::Percent;

/// How many positions there are: one for each hundredth of a percent.
const POSITIONS: u64 = 10_000;

/// A position in hundredths of a percent, from 0 to 9 999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(u16);

impl Bucket {
    /// The first position to move to new.
    pub const FIRST: Self = Self(0);

    /// The position of these hundredths of a percent, if that is one.
    pub fn from_basis_points(value: u16) -> Option<Self> {
        (u64::from(value) < POSITIONS).then_some(Self(value))
    }

    /// A position from 32 random bits. Each position has the same chance but for one part in 400 000.
    pub fn draw(random: u32) -> Self {
        Self(((u64::from(random) * POSITIONS) >> 32) as u16)
    }

    /// Whether this position moves to new at that share.
    pub fn is_below(self, share: Percent) -> bool {
        self.0 < share.basis_points()
    }

    /// Whether this position has come back already, while a share ramps up from zero.
    pub fn is_below_ramp(self, share: Percent, reached: Percent) -> bool {
        let admitted = u32::from(share.basis_points()) * u32::from(reached.basis_points());
        u32::from(self.0) * u32::from(Percent::HUNDRED.basis_points()) < admitted
    }

    /// Hundredths of a percent.
    pub fn basis_points(self) -> u16 {
        self.0
    }

    /// Percent as a number, for JSON.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

/// `18.34`, always with two decimals.
impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

/// The position of a key: the first 8 bytes, big-endian, of SHA-256(salt, 0x00, key) modulo 10 000. This formula is a
/// promise to users: `printf '%s\0%s' SALT KEY | sha256sum` gives the same.
pub fn bucket(salt: &str, key: &[u8]) -> Bucket {
    let digest = Sha256::new().chain_update(salt).chain_update([0]).chain_update(key).finalize();
    let first = digest.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    Bucket((first % POSITIONS) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_golden_pair_keeps_its_bucket() {
        let golden = include_str!("../../tests/golden/buckets.txt");
        let mut pairs = 0;

        for line in golden.lines().filter(|line| !line.starts_with('#')) {
            let mut fields = line.split('\t');
            let (Some(expected), Some(salt), Some(key)) = (fields.next(), fields.next(), fields.next()) else {
                panic!("not a golden pair: {line}");
            };
            assert_eq!(bucket(salt, key.as_bytes()).to_string(), expected, "{line}");
            pairs += 1;
        }

        assert_eq!(pairs, 1_000);
    }

    #[test]
    fn draws_reach_both_ends_evenly() {
        assert_eq!(Bucket::draw(0), Bucket::FIRST);
        assert_eq!(Bucket::draw(u32::MAX), Bucket(9_999));

        let mut counts = [0_u32; 100];
        for step in 0..1_000_000_u64 {
            counts[usize::from(Bucket::draw(((step << 32) / 1_000_000) as u32).0) / 100] += 1;
        }
        assert!(counts.iter().all(|count| (9_990..=10_010).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_higher_share_moves_nobody_back() {
        for position in (0..10_000).map(Bucket) {
            let admitted: Vec<bool> = (0..=100)
                .map(|share| position.is_below(Percent::from_basis_points(share * 100).expect("at most 10 000")))
                .collect();
            assert!(admitted.is_sorted(), "{position}");
        }
    }

    #[test]
    fn a_ramp_starts_with_nobody_and_ends_with_the_share() {
        let share = Percent::from_basis_points(2_000).expect("at most 10 000");
        for position in (0..10_000).map(Bucket) {
            assert!(!position.is_below_ramp(share, Percent::ZERO));
            assert_eq!(position.is_below_ramp(share, Percent::HUNDRED), position.is_below(share));
        }
        let half = Percent::from_basis_points(5_000).expect("at most 10 000");
        assert!(Bucket(999).is_below_ramp(share, half));
        assert!(!Bucket(1_000).is_below_ramp(share, half));
    }
}
