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
            match address(line.text, name).and_then(str::parse::<Network>) {
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

/// Returns the part of a line that is the address.
fn address<'a>(line: &'a str, list: &str) -> Result<&'a str, String> {
    let line = line.split(';').next().unwrap_or_default().trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let text = match word {
        "allow" | "deny" if word != list => {
            return Err(format!("a line of the other list: `{line}`; move the line to `{word}`"));
        }
        "allow" | "deny" => rest.trim(),
        _ => line,
    };
    let column = text.split([',', ' ', '\t']).next().unwrap_or_default().trim_matches('"');
    if column == "all" {
        return Err(format!("no address: `{line}`; write `default = \"{list}\"` beside the lists"));
    }
    // Only a line such as `deny ;` has nothing here.
    if column.is_empty() { Err(format!("no address: `{line}`; expected one such as `192.0.2.1`")) } else { Ok(column) }
}

/// Whether the first line of a list is the heading of a CSV file.
fn is_heading(line: &str) -> bool {
    let first = line.split(',').next().unwrap_or_default().trim_matches('"').to_ascii_lowercase();
    line.contains(',') && ["address", "cidr", "ip", "ip_address", "network", "range", "value"].contains(&first.as_str())
}

/// Returns the error about an `allow` without an address, which would deny every client.
pub fn nobody() -> ConfigError {
    ConfigError::at("/allow", "no address in the list, so that every client would be denied; add one, or set `default`")
}
