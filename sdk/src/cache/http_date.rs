//! Dates of fields (RFC 9110 §5.6.7), read as the proxy reads those of conditional requests.

use std::time::SystemTime;

/// The days of the week. The format of RFC 850 has whole names, the others have three letters.
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Parses a date in any of the three formats, in any letter case (RFC 9111 §4.2), and with any day of the week: only the date
/// counts. `None` if the date does not exist.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text).ok().or_else(|| parse_unusual(&in_usual_case(text.trim())))
}

/// Parses a date with each day of the week, as the parser rejects all days but one.
fn parse_unusual(text: &str) -> Option<SystemTime> {
    let (day, rest) = text.split_at(text.find(|letter: char| !letter.is_ascii_alphabetic())?);
    let names = DAYS.map(|name| if day.len() == 3 { &name[..3] } else { name });
    let mut dates = names.iter().map(|name| httpdate::parse_http_date(&format!("{name}{rest}")));
    if names.contains(&day) { dates.find_map(Result::ok) } else { None }
}

/// Returns a date in the usual case: `sun, 06 NOV 1994 08:49:37 gmt` as `Sun, 06 Nov 1994 08:49:37 GMT`.
fn in_usual_case(date: &str) -> String {
    let mut begins = true;
    let usual = date.chars().map(|letter| {
        let usual = if begins { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() };
        begins = !letter.is_ascii_alphabetic();
        usual
    });
    usual.collect::<String>().replace("Gmt", "GMT")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_day_of_the_week_and_the_case_do_not_count() {
        let wanted = Some(UNIX_EPOCH + Duration::from_secs(784_111_777));
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Mon, 06 Nov 1994 08:49:37 GMT",
            "Tuesday, 06-Nov-94 08:49:37 GMT",
            "Thu Nov  6 08:49:37 1994",
            "WED, 06 nov 1994 08:49:37 gmt",
            " fri, 06 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(parse(text), wanted, "{text}");
        }
    }

    #[test]
    fn texts_that_name_no_date_are_none() {
        for text in [
            "",
            "0",
            "-1",
            "Sunday",
            "06 Nov 1994 08:49:37 GMT",
            "Day, 06 Nov 1994 08:49:37 GMT",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "S\u{fc}n, 06 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
