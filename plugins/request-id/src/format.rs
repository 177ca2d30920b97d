//! Identifiers in their forms, made from 128 random bits and the time.

use crate::config::Format;

/// Returns an identifier; `random` are the 32 hexadecimal digits of the host's identifier, `now_ms` is the Unix time.
pub fn identifier(format: Format, random: &str, now_ms: u64) -> String {
    let bits = u128::from_str_radix(random, 16).unwrap_or_default();
    match format {
        Format::Hex => random.into(),
        Format::Uuid => uuid(bits, now_ms),
        Format::Ulid => ulid(bits, now_ms),
    }
}

/// Returns a UUID of version 7: 48 bits of time, the version, 12 random bits, the variant, 62 random bits.
fn uuid(bits: u128, now_ms: u64) -> String {
    let time = u128::from(now_ms) << 80;
    let version_and_variant = 7 << 76 | 0b10 << 62;
    let random = bits & (0xfff << 64 | ((1 << 62) - 1));
    let digits = format!("{:032x}", time | version_and_variant | random);
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

/// Returns a ULID: 48 bits of time and 80 random bits, five in each character and the first two zero.
fn ulid(bits: u128, now_ms: u64) -> String {
    let value = u128::from(now_ms) << 80 | bits & ((1 << 80) - 1);
    let digit = |place: u32| char::from(CROCKFORD[(value >> (5 * place)) as usize & 31]);
    (0..26).rev().map(digit).collect()
}

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Whether an identifier from a client is fit for logs and fields.
pub fn is_valid(identifier: &str, max_length: usize) -> bool {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=:@".contains(&byte);
    (1..=max_length).contains(&identifier.len()) && identifier.bytes().all(is_fit)
}

/// Returns a `traceparent` (W3C Trace Context §3.2); the trace has the host's identifier, which is in the access log.
pub fn traceparent(random: &str, sampled: bool) -> String {
    let span = random.get(16..).unwrap_or_default();
    format!("00-{random}-{span}-0{}", u8::from(sampled))
}

/// Whether a `traceparent` from a client is valid. A later version may have more parts behind these.
pub fn is_traceparent(value: &str) -> bool {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_part = |part: &str, length| part.len() == length && part.bytes().all(is_hex);
    let is_set = |part: &str| part.bytes().any(|byte| byte != b'0');
    let parts: Vec<&str> = value.splitn(5, '-').collect();
    let [version, trace, span, flags, ref rest @ ..] = parts[..] else { return false };
    is_part(version, 2)
        && version != "ff"
        && (rest.is_empty() || version != "00")
        && is_part(trace, 32)
        && is_part(span, 16)
        && is_part(flags, 2)
        && is_set(trace)
        && is_set(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANDOM: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn identifiers_have_the_time_in_front_and_random_bits_behind() {
        // The time of the example in RFC 9562 §A.6.
        let now = 1_645_557_742_000;
        assert_eq!(identifier(Format::Hex, RANDOM, now), RANDOM);
        assert_eq!(identifier(Format::Uuid, RANDOM, now), "017f22e2-79b0-7677-8899-aabbccddeeff");
        assert_eq!(identifier(Format::Ulid, RANDOM, now), "01FWHE4YDGCSVRH6DAQF6DVVQZ");
        assert_eq!(identifier(Format::Ulid, &"f".repeat(32), (1 << 48) - 1), "7ZZZZZZZZZZZZZZZZZZZZZZZZZ");
        assert_eq!(identifier(Format::Uuid, &"f".repeat(32), 0), "00000000-0000-7fff-bfff-ffffffffffff");
    }

    #[test]
    fn an_identifier_from_outside_has_known_characters() {
        for valid in ["a", "A-1_2.3~4+5/6=7:8@9"] {
            assert!(is_valid(valid, 19), "{valid}");
        }
        for invalid in ["", "a b", "a,b", "a\"b", "a\\b", "a{b", "a%b", "caf\u{e9}", "a\n", &"a".repeat(20)] {
            assert!(!is_valid(invalid, 19), "{invalid}");
        }
    }

    #[test]
    fn a_traceparent_has_its_form() {
        let made = traceparent(RANDOM, true);
        assert_eq!(made, "00-00112233445566778899aabbccddeeff-8899aabbccddeeff-01");
        assert!(is_traceparent(&made) && is_traceparent(&traceparent(RANDOM, false)));
        assert!(
            is_traceparent(&made.replacen("00", "cc", 1)) && is_traceparent(&(made.replacen("00", "cc", 1) + "-x-y"))
        );
        let wrong = [
            made.to_uppercase(),
            made.replacen("00", "ff", 1),
            format!("{made}-x"),
            made.replace(RANDOM, &"0".repeat(32)),
            made.replace("-8899aabbccddeeff-", "-0000000000000000-"),
            made.replace("-01", "-1"),
            format!("{made}, {made}"),
            String::new(),
        ];
        for wrong in wrong {
            assert!(!is_traceparent(&wrong), "{wrong}");
        }
    }
}
