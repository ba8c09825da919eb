//! Sizes as people write them: bytes, or a number with K, M or G (powers of 1024).

/// Reads a size.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let number: f64 = digits.parse().map_err(|_| format!("not a size: `{text}` (bytes, or with K, M, G)"))?;
    Ok((number * f64::from(unit)) as u64)
}

/// Writes a size in MiB, as the tables do.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.0}M", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    #[test]
    fn units() {
        assert_eq!(super::parse("1.5G"), Ok(3 << 29));
        assert_eq!(super::parse("300m"), Ok(300 << 20));
        assert_eq!(super::parse("17"), Ok(17));
        assert!(super::parse("much").is_err());
        assert_eq!(super::mib(300 << 20), "300M");
    }
}
