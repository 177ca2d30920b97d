//! Dictionaries of structured fields (RFC 9651 §3.2), as far as caching needs them: the values of members, without
//! their parameters.

/// The value of a dictionary member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    True,
    False,
    Integer(String),
    Other(String),
}

/// Parses the members in order; of members with the same key the last one counts. `None` if the field is not a
/// dictionary.
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
                if rest.starts_with('(') { inner_list(&mut rest)? } else { item(&mut rest)? }
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

/// Parses a bare item (RFC 9651 §3.3).
fn item(rest: &mut &str) -> Option<Item> {
    match rest.bytes().next()? {
        b'?' => boolean(rest),
        b'"' => string(rest),
        b':' => quoted(rest, ':', |byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte)),
        b'%' => {
            *rest = &rest[1..];
            quoted(rest, '"', |byte| (b' '..=b'~').contains(&byte) && byte != b'"')
        }
        b'@' => {
            *rest = &rest[1..];
            matches!(number(rest)?, Item::Integer(_)).then(|| Item::Other(String::new()))
        }
        b'-' | b'0'..=b'9' => number(rest),
        b'*' | b'a'..=b'z' | b'A'..=b'Z' => {
            let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte);
            Some(Item::Other(take(rest, is_part).into()))
        }
        _ => None,
    }
}

/// Parses an inner list (RFC 9651 §3.1.1), which no caching directive has.
fn inner_list(rest: &mut &str) -> Option<Item> {
    *rest = rest.strip_prefix('(')?;
    loop {
        *rest = rest.trim_start_matches(' ');
        if let Some(after) = rest.strip_prefix(')') {
            *rest = after;
            return Some(Item::Other(String::new()));
        }
        item(rest)?;
        parameters(rest)?;
        if !rest.starts_with([' ', ')']) {
            return None;
        }
    }
}

fn boolean(rest: &mut &str) -> Option<Item> {
    let (value, after) = match rest.as_bytes().get(1)? {
        b'1' => (Item::True, &rest[2..]),
        b'0' => (Item::False, &rest[2..]),
        _ => return None,
    };
    *rest = after;
    Some(value)
}

fn string(rest: &mut &str) -> Option<Item> {
    let (mut text, mut letters) = (String::new(), rest.strip_prefix('"')?.chars());
    loop {
        match letters.next()? {
            '"' => break,
            '\\' => text.push(letters.next().filter(|letter| ['"', '\\'].contains(letter))?),
            letter @ ' '..='~' => text.push(letter),
            _ => return None,
        }
    }
    *rest = letters.as_str();
    Some(Item::Other(text))
}

fn number(rest: &mut &str) -> Option<Item> {
    let text = take(rest, |byte| byte.is_ascii_digit() || b"-.".contains(&byte));
    let digits = text.strip_prefix('-').unwrap_or(text);
    let are_digits =
        |text: &str, max| (1..=max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    match digits.split_once('.') {
        None => are_digits(digits, 15).then(|| Item::Integer(text.into())),
        Some((whole, part)) => (are_digits(whole, 12) && are_digits(part, 3)).then(|| Item::Other(text.into())),
    }
}

/// Parses a value between two marks, which no caching directive has.
fn quoted(rest: &mut &str, mark: char, is_part: impl Fn(u8) -> bool) -> Option<Item> {
    *rest = rest.strip_prefix(mark)?;
    take(rest, is_part);
    *rest = rest.strip_prefix(mark)?;
    Some(Item::Other(String::new()))
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
        let read = r#"a:Other("") b:Other("") c:Other("") d:Other("") e:Integer("1")"#;
        assert_eq!(text(r#"a=(x "y";p  1 ), b=:YQ==:;p, c=@1659578233, d=%"f%c3%bc", e=1"#).as_deref(), Some(read));
        for wrong in [
            "a=1,",
            "A=1",
            "a=(",
            "a=(1\"\")",
            "a b",
            "a=\"",
            "1=a",
            "a=\u{e4}",
            "a=",
            "a=-",
            "a=1.2.3",
            "a=:Y",
            "a=@x",
            "a=?2",
        ] {
            assert_eq!(text(wrong), None, "{wrong}");
        }
    }
}
