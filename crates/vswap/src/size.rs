//! Amounts of memory as people write them: `512M`, `1.5GiB`, `65536`, `60%`.
//!
//! Suffixes are powers of 1024, as in cgroup v2, systemd and util-linux. `MB` is refused, not guessed: for half of the
//! tools in the world it is a million.

use std::fmt;
use std::str::FromStr;

/// An amount of memory, or a share of the machine's.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Size {
    /// This many bytes.
    Bytes(u64),
    /// This many hundredths of the machine's memory.
    Percent(f64),
}

impl Size {
    /// The amount in bytes on a machine with `machine` bytes of memory.
    pub(crate) fn bytes(self, machine: u64) -> u64 {
        match self {
            Self::Bytes(n) => n,
            // Below 2^53 bytes a double is exact to the byte.
            Self::Percent(p) => (machine as f64 * p / 100.0) as u64,
        }
    }
}

/// `--memory`: an amount, or what the machine and its control groups leave.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Memory {
    /// What the surroundings leave, read again while the program runs.
    Auto,
    /// A fixed amount.
    Fixed(Size),
}

/// Why a text is not a size. Its `Display` says what to write instead.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum SizeError {
    /// No digits at the start.
    NoNumber,
    /// The suffix is none that we know.
    Suffix(String),
    /// `MB` and its like.
    Decimal(char),
    /// Nothing, or less.
    Zero,
    /// More than 2^63 bytes, or more than 1000 %.
    TooLarge,
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNumber => write!(f, "not a size: write a number and a unit, such as 512M, 1.5G or 60%"),
            Self::Suffix(s) => {
                write!(
                    f,
                    "unknown unit '{s}': use K, M, G or T (powers of 1024), or % of the machine's memory"
                )
            }
            Self::Decimal(c) => {
                write!(
                    f,
                    "'{c}B' can mean two things: write {c} or {c}iB for powers of 1024, or the number of bytes"
                )
            }
            Self::Zero => write!(f, "must be more than zero"),
            Self::TooLarge => write!(f, "too large: at most 8E bytes, or 1000%"),
        }
    }
}

impl std::error::Error for SizeError {}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let suffix = suffix.trim_start();
        // A whole number of bytes stays exact above 2^53.
        let whole = number.parse::<u64>().ok();
        let value: f64 = number.parse().map_err(|_| SizeError::NoNumber)?;
        if value <= 0.0 {
            return Err(SizeError::Zero);
        }
        if suffix == "%" {
            return if value > 1000.0 { Err(SizeError::TooLarge) } else { Ok(Self::Percent(value)) };
        }
        let shift = shift(suffix)?;
        let bytes = match whole {
            Some(n) => n.checked_mul(1 << shift).ok_or(SizeError::TooLarge)?,
            None => (value * (1u64 << shift) as f64) as u64,
        };
        match bytes {
            0 => Err(SizeError::Zero),
            n if n > i64::MAX as u64 => Err(SizeError::TooLarge),
            n => Ok(Self::Bytes(n)),
        }
    }
}

/// Binary logarithm of what a unit stands for.
fn shift(suffix: &str) -> Result<u32, SizeError> {
    let lower = suffix.to_ascii_lowercase();
    let mut chars = lower.chars();
    let Some(unit) = chars.next() else { return Ok(0) };
    let rest = chars.as_str();
    let shift = match unit {
        'b' if rest.is_empty() => return Ok(0),
        'k' => 10,
        'm' => 20,
        'g' => 30,
        't' => 40,
        _ => return Err(SizeError::Suffix(suffix.into())),
    };
    match rest {
        "" | "ib" => Ok(shift),
        "b" => Err(SizeError::Decimal(unit.to_ascii_uppercase())),
        _ => Err(SizeError::Suffix(suffix.into())),
    }
}

impl FromStr for Memory {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        if text.trim().eq_ignore_ascii_case("auto") {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::Fixed)
    }
}

/// Bytes as a person reads them: `1.5 GiB`, three digits that mean something.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // 999.5 would print as 1000.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 || value >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> u64 {
        text.parse::<Size>().unwrap().bytes(1000 << 20)
    }

    #[test]
    fn units_are_powers_of_1024() {
        assert_eq!(bytes("4096"), 4096);
        assert_eq!(bytes("4096B"), 4096);
        assert_eq!(bytes("1K"), 1 << 10);
        assert_eq!(bytes("512m"), 512 << 20);
        assert_eq!(bytes("512MiB"), 512 << 20);
        assert_eq!(bytes("2 gib"), 2 << 30);
        assert_eq!(bytes("1T"), 1 << 40);
        assert_eq!(bytes("1.5G"), 3 << 29);
        assert_eq!(bytes("9007199254740993"), 9007199254740993);
    }

    #[test]
    fn percent_is_of_the_machine() {
        assert_eq!(bytes("50%"), 500 << 20);
        assert_eq!(bytes("12.5%"), 125 << 20);
        assert_eq!(bytes("150 %"), 1500 << 20);
    }

    #[test]
    fn errors_name_the_mistake() {
        let error = |text: &str| text.parse::<Size>().unwrap_err();
        assert_eq!(error(""), SizeError::NoNumber);
        assert_eq!(error("big"), SizeError::NoNumber);
        assert_eq!(error("-1G"), SizeError::NoNumber);
        assert_eq!(error("1.2.3G"), SizeError::NoNumber);
        assert_eq!(error("0"), SizeError::Zero);
        assert_eq!(error("0%"), SizeError::Zero);
        assert_eq!(error("0.1B"), SizeError::Zero);
        assert_eq!(error("5MB"), SizeError::Decimal('M'));
        assert_eq!(error("5X"), SizeError::Suffix("X".into()));
        assert_eq!(error("5Mi"), SizeError::Suffix("Mi".into()));
        assert_eq!(error("99999999T"), SizeError::TooLarge);
        assert_eq!(error("99999999.5T"), SizeError::TooLarge);
        assert_eq!(error("2000%"), SizeError::TooLarge);
        for text in ["big", "5MB", "5X", "0", "2000%"] {
            assert!(!error(text).to_string().is_empty());
        }
    }

    #[test]
    fn memory_knows_auto() {
        assert_eq!("auto".parse::<Memory>(), Ok(Memory::Auto));
        assert_eq!("AUTO".parse::<Memory>(), Ok(Memory::Auto));
        assert_eq!("1G".parse::<Memory>(), Ok(Memory::Fixed(Size::Bytes(1 << 30))));
        assert!("automatic".parse::<Memory>().is_err());
    }

    #[test]
    fn human_keeps_three_digits() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(999), "999 B");
        assert_eq!(human(1000), "0.98 KiB");
        assert_eq!(human(1536), "1.50 KiB");
        assert_eq!(human(10 << 20), "10.0 MiB");
        assert_eq!(human(512 << 20), "512 MiB");
        assert_eq!(human(1023 << 20), "1.00 GiB");
        assert_eq!(human(3 << 40), "3.00 TiB");
    }
}
