//! Dictionaries of structured fields (RFC 9651 §3.2), as far as caching needs them: what a member's value is, without its
//! parameters.

/// The value of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    True,
    False,
    Integer(String),
    Other(String),
}

/// The members in order; of two with the same key the last counts. None if it is no dictionary.
pub fn parse(field: &[u8]) -> Option<Vec<(String, Item)>> {
    let mut rest = std::str::from_utf8(field).ok()?.trim_matches(' ');
    let mut members: Vec<(String, Item)> = Vec::new();
    while !rest.is_empty() {
        let key = take(&mut rest, |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte));
        if !key.starts_with(|first: char| first.is_ascii_lowercase() || first == '*') {
            return None;
        }
        let value = match rest.strip_prefix('=') {
            Some(after) => {
                rest = after;
                item(&mut rest)?
            }
            None => Item::True,
        };
        parameters(&mut rest)?;
        members.retain(|(known, _)| known != key);
        members.push((key.into(), value));
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return Some(members);
        }
        rest = rest.strip_prefix(',')?.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return None;
        }
    }
    Some(members)
}

fn item(rest: &mut &str) -> Option<Item> {
    if let Some(after) = rest.strip_prefix("?1") {
        *rest = after;
        return Some(Item::True);
    }
    if let Some(after) = rest.strip_prefix("?0") {
        *rest = after;
        return Some(Item::False);
    }
    if let Some(mut after) = rest.strip_prefix('"') {
        let mut text = String::new();
        loop {
            let letter = after.chars().next()?;
            after = &after[letter.len_utf8()..];
            match letter {
                '"' => break,
                '\\' => {
                    let escaped = after.chars().next().filter(|letter| ['"', '\\'].contains(letter))?;
                    after = &after[1..];
                    text.push(escaped);
                }
                ' '..='~' => text.push(letter),
                _ => return None,
            }
        }
        *rest = after;
        return Some(Item::Other(text));
    }
    let text = take(rest, |byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte));
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !digits.is_empty() && digits.len() <= 15 && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Item::Integer(text.into()));
    }
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let is_token = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '*');
    (!text.is_empty() && (is_number || is_token)).then(|| Item::Other(text.into()))
}

fn parameters(rest: &mut &str) -> Option<()> {
    while let Some(after) = rest.strip_prefix(';') {
        *rest = after.trim_start_matches(' ');
        let key = take(rest, |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte));
        if key.is_empty() {
            return None;
        }
        if let Some(after) = rest.strip_prefix('=') {
            *rest = after;
            item(rest)?;
        }
    }
    Some(())
}

fn take<'a>(rest: &mut &'a str, is_part: impl Fn(u8) -> bool) -> &'a str {
    let end = rest.bytes().position(|byte| !is_part(byte)).unwrap_or(rest.len());
    let (taken, after) = rest.split_at(end);
    *rest = after;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_as_rfc_9651_writes_them() {
        let text = |field: &str| {
            let members = parse(field.as_bytes())?.into_iter();
            Some(members.map(|(key, value)| format!("{key}:{value:?}")).collect::<Vec<_>>().join(" "))
        };
        let all = r#"a=1, b, c=?0;x=1 , d="e\"f", g=1.5"#;
        let read = r#"a:Integer("1") b:True c:False d:Other("e\"f") g:Other("1.5")"#;
        assert_eq!(text(all).as_deref(), Some(read));
        assert_eq!(text("a=1, a=-2").as_deref(), Some("a:Integer(\"-2\")"));
        assert_eq!(text("a;x;y=2").as_deref(), Some("a:True"));
        for wrong in ["a=1,", "A=1", "a=(", "a b", "a=\"", "1=a", "a=\u{e4}"] {
            assert_eq!(text(wrong), None, "{wrong}");
        }
    }
}
