//! Durations and sizes in a configuration, written as in the manifest: `"30s"`, `"7d"`, `"10 MiB"`. The manifest has bounds
//! besides, which a plugin has to set itself: its durations are more than zero and at most 366 days.

use std::time::Duration;

/// Parses a duration such as `500ms`, `10s`, `5m`, `1h` or `7d`, which may be zero; the error says what is expected.
///
/// ```
/// use std::time::Duration;
///
/// use plugway_sdk::units::duration;
///
/// assert_eq!(duration("2 h"), Ok(Duration::from_secs(7200)));
/// assert_eq!(duration("5").unwrap_err(), "invalid duration: `5`; expected one such as `10s`, `5m`, `1h` or `7d`");
/// ```
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let milliseconds = match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    // More than a hundred years: the bound only keeps the product small.
    let number = number.filter(|number| *number <= 1 << 32);
    let duration = number.zip(milliseconds).map(|(number, unit)| Duration::from_millis(number * unit));
    duration.ok_or_else(|| format!("invalid duration: `{text}`; expected one such as `10s`, `5m`, `1h` or `7d`"))
}

/// Parses a size in bytes such as `512 B`, `64 KiB`, `10 MiB` or `1 GiB`; the error says what is expected.
///
/// ```
/// use plugway_sdk::units::bytes;
///
/// assert_eq!(bytes("10 MiB"), Ok(10 << 20));
/// assert_eq!(bytes("10 MB").unwrap_err(), "invalid size: `10 MB`; expected one such as `512 B`, `64 KiB`, `10 MiB` or `1 GiB`");
/// ```
pub fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let unit = match unit {
        "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1_u64 << 30),
        _ => None,
    };
    let size = number.zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    size.ok_or_else(|| format!("invalid size: `{text}`; expected one such as `512 B`, `64 KiB`, `10 MiB` or `1 GiB`"))
}

/// Splits a text into its number, `None` if there is none, and its unit.
fn split(text: &str) -> (Option<u64>, &str) {
    let digits = text.len() - text.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
    (text[..digits].parse().ok(), text[digits..].trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_without_a_unit_and_units_without_a_number_are_errors() {
        for text in ["", "5", "s", "-5s", "5 s x", "1.5s", "99999999999s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for text in ["", "5", "KiB", "-5 B", "1.5 KiB", "99999999999 GiB", "5 kib"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        assert_eq!((duration("0s"), bytes("0 B")), (Ok(Duration::ZERO), Ok(0)));
    }
}
