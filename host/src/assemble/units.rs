//! Durations and sizes in the notation of the manifest.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Parses a duration such as `50ms`, `10s`, `5m`, `1h` or `7d`.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().ok().filter(|number| (1..=1 << 32).contains(number))?;
    let duration = match text[digits..].trim_start() {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number * 60),
        "h" => Duration::from_secs(number * 3600),
        "d" => Duration::from_secs(number * 24 * 3600),
        _ => return None,
    };
    (duration <= MAX_DURATION).then_some(duration)
}

/// Describes a text that is no duration, with the reason where it is known.
pub fn found_duration(text: &str) -> String {
    let number = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let reason = match text[number.len()..].trim() {
        _ if number.is_empty() || number.contains(|letter: char| !letter.is_ascii_digit()) => {
            " is no whole number with a unit"
        }
        "" => " has no unit",
        "ms" | "s" | "m" | "h" | "d" if number.bytes().all(|digit| digit == b'0') => " is no time at all",
        "ms" | "s" | "m" | "h" | "d" => " is more than a year",
        _ => " has an unknown unit",
    };
    format!("`{text}`{reason}")
}

/// Describes a text that is no size, with the reason where it is known.
pub fn found_size(text: &str) -> String {
    let number = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let reason = match text[number.len()..].trim() {
        _ if number.is_empty() || number.contains(|letter: char| !letter.is_ascii_digit()) => {
            " is no whole number with a unit"
        }
        "" => " has no unit",
        "B" | "KiB" | "MiB" | "GiB" => " is more than 1024 TiB",
        unit => {
            let remedy = binary_unit(unit).map_or(String::new(), |unit| format!(": write `{number} {unit}`"));
            return format!("`{text}` has an unknown unit{remedy}");
        }
    };
    format!("`{text}`{reason}")
}

/// Returns the unit that another spelling of a unit probably means; nearly as much, if it is one of ten's powers.
fn binary_unit(unit: &str) -> Option<&'static str> {
    match unit.to_ascii_lowercase().as_str() {
        "b" | "byte" | "bytes" => Some("B"),
        "k" | "kb" | "kib" => Some("KiB"),
        "m" | "mb" | "mib" => Some("MiB"),
        "g" | "gb" | "gib" => Some("GiB"),
        _ => None,
    }
}

/// The maximum duration. Users who write more mean no limit, and a longer one might not fit when added to a time.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// The largest size in bytes: more than any machine has, and little enough to be multiplied.
const MAX_SIZE_BYTES: usize = 1 << 50;

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

/// Parses a size such as `64 KiB` or `16 MiB`.
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
    number.checked_mul(unit).filter(|bytes| *bytes <= MAX_SIZE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_units() {
        assert_eq!(duration("50ms"), Some(Duration::from_millis(50)));
        assert_eq!(duration("2 h"), Some(Duration::from_secs(7200)));
        assert_eq!((duration("5"), duration("s"), duration("0s"), duration("1w")), (None, None, None, None));
        // As in the configurations of plugins, which the SDK reads.
        assert_eq!((duration("7d"), duration("366 d")), (Some(Duration::from_secs(604_800)), Some(MAX_DURATION)));
        assert_eq!((duration("8784h"), duration("8785h")), (Some(MAX_DURATION), None));
        assert_eq!((bytes("1048576 GiB"), bytes("1048577 GiB")), (Some(MAX_SIZE_BYTES), None));
        for (text, what) in [
            ("5", "no unit"),
            ("1.5s", "whole number"),
            ("0s", "no time"),
            ("9999h", "a year"),
            ("367d", "a year"),
            ("0d", "no time"),
            ("1w", "unknown"),
        ] {
            assert!(found_duration(text).contains(what), "{text}");
        }
        for (text, what) in [
            ("5", "no unit"),
            ("1.5 MiB", "whole number"),
            ("9999999 GiB", "TiB"),
            ("1 parsec", "unknown unit"),
            ("20 MB", "unknown unit: write `20 MiB`"),
            ("20m", "unknown unit: write `20 MiB`"),
        ] {
            assert!(found_size(text).contains(what), "{text}");
        }
        assert_eq!(
            (bytes("16 MiB"), bytes("1KiB"), bytes("16"), bytes("16 MB")),
            (Some(16 << 20), Some(1024), None, None)
        );
    }
}
