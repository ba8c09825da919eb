//! The check that every load verifies: XXH3-64 over the stored bytes, mixed with the slot's number, cut to the width
//! that the record has room for.
//!
//! A check of n bits misses a wrong object with probability 2^-n: 12 bits in a pool header (one in 4096), with 32 more behind
//! the payload where that is wished for, and 24 bits in a file's reverse-map word (one in 16 million). The slot is mixed in, so that the right bytes of the wrong slot fail
//! as surely as rotten ones.

use vswap_core::SlotId;
use xxhash_rust::xxh3::xxh3_64;

/// `BITS` bits of the check of `bytes` as the object of `slot`: those of a wider check begin with those of a narrower one.
pub(crate) fn check<const BITS: u32>(slot: SlotId, bytes: &[u8]) -> u64 {
    const { assert!(BITS > 0 && BITS <= 64) };
    // Two odd multipliers of SplitMix64: every bit of slot and hash reaches the bits that are kept.
    let mut x = xxh3_64(bytes) ^ slot.get().wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x >> (64 - BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_on_slot_and_on_every_byte() {
        let slot = |n| SlotId::new(n).expect("a slot");
        let mut bytes = [7u8; 100];
        let whole = check::<32>(slot(1), &bytes);
        assert_ne!(whole, check::<32>(slot(2), &bytes));
        for i in 0..bytes.len() {
            bytes[i] ^= 0x10;
            assert_ne!(whole, check::<32>(slot(1), &bytes), "byte {i}");
            bytes[i] ^= 0x10;
        }
    }

    #[test]
    fn twelve_bits_miss_about_one_in_4096() {
        let slot = SlotId::new(77).expect("a slot");
        let whole = check::<12>(slot, &0u64.to_le_bytes());
        let missed = (1..=400_000u64).filter(|n| check::<12>(slot, &n.to_le_bytes()) == whole).count();
        assert!((60..140).contains(&missed), "{missed} of 400000, expected about 98");
    }
}
