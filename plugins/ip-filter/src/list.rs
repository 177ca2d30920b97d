//! Lists of addresses, in the formats that others write: plain lines, nginx's `deny 192.0.2.1;`, CSV and columns whose
//! first one is the address.

use plugway_sdk::{ConfigError, Setup, lines};

use crate::config::List;
use crate::networks::{Network, Networks};

/// Parses a list. `name` is its key in the configuration, `allow` or `deny`. Lines that can't be parsed are reported.
pub fn parse(list: &List, name: &str, setup: &mut Setup) -> Networks {
    let mut networks = Networks::default();
    let mut left = MOST_ERRORS;
    for (place, entry) in list.entries() {
        for (index, line) in lines::of(entry).enumerate() {
            if index == 0 && is_heading(line.text) {
                continue;
            }
            match network(line.text, name) {
                Ok(network) => networks.add(network),
                Err(_) if left == 0 => return networks,
                Err(message) => {
                    left -= 1;
                    setup.report(line.error(format!("/{name}{place}"), message));
                }
            }
        }
    }
    networks.sort();
    networks
}

/// The maximum number of errors of a list that are reported: a file of another kind has one in each line.
const MOST_ERRORS: usize = 20;

/// Returns the address, the network or the range of a line. The other columns of the line, and the text behind a `;`, are
/// for people: an address in them would be dropped in silence, and is an error.
fn network(line: &str, list: &str) -> Result<Network, String> {
    let (entry, comment) = line.split_once(';').unwrap_or((line, ""));
    let entry = entry.trim();
    let text = without_directive(entry, list)?;
    let (column, rest) = split_column(text);
    if column == "all" {
        return Err(format!("no address: `{entry}`; write `default = \"{list}\"` beside the lists"));
    }
    // Only a line such as `deny ;` has nothing here.
    if column.is_empty() {
        return Err(format!("no address: `{entry}`; expected one such as `192.0.2.1`"));
    }
    let (network, rest) = match spaced_range(column, rest) {
        Some((last, rest)) => (Network::range(column, last)?, rest),
        None => match column.split_once('-') {
            Some((first, last)) if is_address(first) || is_address(last) => (Network::range(first, last)?, rest),
            _ => (column.parse()?, rest),
        },
    };
    if let Some(second) = columns(rest).find(|column| is_address(column)).or_else(|| second_entry(comment)) {
        return Err(format!(
            "a second address in a line: `{second}` after `{column}`; write each in a line of its own, a network as \
             `192.0.2.0/24`, a range as `192.0.2.0-192.0.2.255`, and a comment after ` # `"
        ));
    }
    Ok(network)
}

/// Returns a line without the directive of nginx before its address; an error if the directive is that of the other list.
fn without_directive<'a>(line: &'a str, list: &str) -> Result<&'a str, String> {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match word {
        "allow" | "deny" if word != list => {
            Err(format!("a line of the other list: `{line}`; move the line to `{word}`"))
        }
        "allow" | "deny" => Ok(rest.trim()),
        _ => Ok(line),
    }
}

/// Returns the last address of a range such as `192.0.2.0 - 192.0.2.255`, and the text behind the range; `None` for other
/// texts.
fn spaced_range<'a>(column: &str, rest: &'a str) -> Option<(&'a str, &'a str)> {
    let (last, rest) = split_column(rest.strip_prefix('-')?.trim_start());
    (is_address(column) && is_address(last)).then_some((last, rest))
}

/// Returns the address, the network or the directive with which a comment begins; `None` if it begins otherwise.
fn second_entry(comment: &str) -> Option<&str> {
    columns(comment).next().filter(|word| is_address(word) || ["allow", "deny"].contains(word))
}

/// Whether a column is an address or a network, or the prefix of the one before it.
fn is_address(column: &str) -> bool {
    let is_prefix = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let (first, last) = column.split_once('-').unwrap_or((column, column));
    column.strip_prefix('/').is_some_and(is_prefix) || [first, last].iter().all(|text| text.parse::<Network>().is_ok())
}

fn columns(text: &str) -> impl Iterator<Item = &str> {
    text.split(SEPARATORS).map(|column| column.trim_matches('"')).filter(|column| !column.is_empty())
}

/// Splits a text after its first column.
fn split_column(text: &str) -> (&str, &str) {
    let (column, rest) = text.split_at(text.find(SEPARATORS).unwrap_or(text.len()));
    (column.trim_matches('"'), rest.trim_start_matches(SEPARATORS))
}

const SEPARATORS: [char; 4] = [',', ' ', '\t', ';'];

/// Whether the first line of a list is the heading of a CSV file.
fn is_heading(line: &str) -> bool {
    let first = line.split(',').next().unwrap_or_default().trim_matches('"').to_ascii_lowercase();
    line.contains(',') && ["address", "cidr", "ip", "ip_address", "network", "range", "value"].contains(&first.as_str())
}

/// Returns the error about an `allow` without an address, which would deny every client.
pub fn nobody() -> ConfigError {
    ConfigError::at("/allow", "no address in the list, so that every client would be denied; add one, or set `default`")
}
