//! Times and sizes as the manifest writes them.

use std::ops::RangeInclusive;
use std::time::Duration;

/// `50ms`, `10s`, `5m`, `1h`.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().ok().filter(|number| (1..=1 << 32).contains(number))?;
    match text[digits..].trim_start() {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number * 60)),
        "h" => Some(Duration::from_secs(number * 3600)),
        _ => None,
    }
}

/// The codes of `2xx` to `5xx`.
pub fn status_class(text: &str) -> Option<RangeInclusive<u16>> {
    match text {
        "2xx" => Some(200..=299),
        "3xx" => Some(300..=399),
        "4xx" => Some(400..=499),
        "5xx" => Some(500..=599),
        _ => None,
    }
}

/// `64 KiB`, `16 MiB`.
pub fn bytes(text: &str) -> Option<usize> {
    let digits = text.len() - text.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
    let number: usize = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim_start() {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_units() {
        assert_eq!(duration("50ms"), Some(Duration::from_millis(50)));
        assert_eq!(duration("2 h"), Some(Duration::from_secs(7200)));
        assert_eq!((duration("5"), duration("s"), duration("0s"), duration("1d")), (None, None, None, None));
        assert_eq!(
            (bytes("16 MiB"), bytes("1KiB"), bytes("16"), bytes("16 MB")),
            (Some(16 << 20), Some(1024), None, None)
        );
    }
}
