//! Members of lists with weights (RFC 9110 §12.4.2), as in `Accept` and `Accept-Encoding`.

/// Returns a member of a list with its weight in thousandths, from 0 (rejected) to 1000; `None` if the weight
/// is malformed, or the member is empty.
pub fn weighted(member: &str) -> Option<(&str, u16)> {
    let mut parts = member.split(';').map(str::trim);
    let name = parts.next().filter(|name| !name.is_empty())?;
    let mut weight = 1000;
    for part in parts {
        if let Some(value) = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")) {
            weight = thousandths(value)?;
        }
    }
    Some((name, weight))
}

/// Parses a weight (RFC 9110 §12.4.2): `0` or `1`, with up to three decimals.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || decimals.len() > 3 || !decimals.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let weight: u16 = format!("{whole}{decimals:0<3}").parse().ok()?;
    (weight <= 1000).then_some(weight)
}
