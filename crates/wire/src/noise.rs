//! Seeded noise for the decoder tests: arbitrary packets, and honest packets with a few bytes changed.

/// SplitMix64: a failing case is repeated by its seed.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Noise {
        Noise(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Feeds a decoder every truncation and extension of an honest packet, then mutations of it, then noise.
///
/// `accepts` decodes, checks what survived, and says whether anything did.
pub(crate) fn torment(noise: &mut Noise, honest: &[u8], accepts: impl Fn(&[u8]) -> bool) {
    assert!(accepts(honest));
    let mut packet = [0u8; 2048];
    packet[..honest.len()].copy_from_slice(honest);
    for length in (0..honest.len()).chain(honest.len() + 1..honest.len() + 40) {
        assert!(!accepts(&packet[..length]), "length {length}");
    }
    for _ in 0..20_000 {
        packet[..honest.len()].copy_from_slice(honest);
        for _ in 0..=noise.below(3) {
            let at = noise.below(honest.len() as u64) as usize;
            packet[at] = match noise.below(4) {
                0 => 0,
                1 => 0xff,
                2 => packet[at] ^ (1 << noise.below(8)),
                _ => noise.next() as u8,
            };
        }
        accepts(&packet[..honest.len()]);
    }
    for _ in 0..5_000 {
        let length = noise.below(packet.len() as u64 + 1) as usize;
        for byte in &mut packet[..length] {
            *byte = noise.next() as u8;
        }
        if length >= 4 && noise.below(2) == 0 {
            packet[..4].copy_from_slice(&honest[..4]);
        }
        accepts(&packet[..length]);
    }
}
