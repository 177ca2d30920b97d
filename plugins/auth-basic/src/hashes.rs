//! The formats of hashes of passwords: malformed and costly ones are found when the manifest is loaded. Messages never
//! contain a hash.

/// The error of a hash that the host could not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongHash(pub &'static str);

/// The limits of the host, as the WIT names them.
const MAX_BCRYPT_COST: u32 = 14;
const MAX_SHA_CRYPT_ROUNDS: u32 = 1_000_000;
const MAX_ARGON2_MEMORY: u64 = 128 << 10;
const MAX_ARGON2_WORK: u64 = 1 << 20;

/// Checks that a hash has a known format, and costs no more than the host allows.
pub fn check(hash: &str) -> Result<(), WrongHash> {
    match hash.get(..4) {
        Some("$2a$" | "$2b$" | "$2y$") => check_bcrypt(&hash[4..]),
        Some(text) if text.starts_with("$5$") => check_sha_crypt(&hash[3..], 43),
        Some(text) if text.starts_with("$6$") => check_sha_crypt(&hash[3..], 86),
        _ if hash.starts_with("$argon2") => check_argon2(hash),
        _ if hash.starts_with("$apr1$") || hash.starts_with("$1$") => {
            Err(WrongHash("hash by MD5, which is broken; expected one by `htpasswd -B` or `plugway hash-password`"))
        }
        _ if hash.starts_with("{SHA}") => {
            Err(WrongHash("hash by SHA-1 without a salt; expected one by `htpasswd -B` or `plugway hash-password`"))
        }
        _ => Err(WrongHash(UNKNOWN)),
    }
}

const UNKNOWN: &str = "invalid hash; expected one by bcrypt (`$2y$…`), Argon2 (`$argon2id$…`) or SHA-crypt (`$5$…`, \
                       `$6$…`), such as `htpasswd -B` or `plugway hash-password` makes";

const MALFORMED: WrongHash =
    WrongHash("malformed hash; expected it as `htpasswd -B` or `plugway hash-password` prints it");

fn check_bcrypt(rest: &str) -> Result<(), WrongHash> {
    let (cost, digest) = rest.split_once('$').ok_or(MALFORMED)?;
    let cost: u32 = cost.parse().map_err(|_| MALFORMED)?;
    if digest.len() != 53 || !digest.bytes().all(is_crypt_byte) || cost < 4 {
        return Err(MALFORMED);
    }
    if cost > MAX_BCRYPT_COST {
        return Err(WrongHash("hash by bcrypt with a cost above 14, which takes seconds; make one with a lower cost"));
    }
    Ok(())
}

fn check_sha_crypt(rest: &str, length: usize) -> Result<(), WrongHash> {
    let (rounds, rest) = match rest.strip_prefix("rounds=") {
        Some(rest) => rest.split_once('$').ok_or(MALFORMED)?,
        None => ("5000", rest),
    };
    let rounds: u32 = rounds.parse().map_err(|_| MALFORMED)?;
    let (salt, digest) = rest.split_once('$').ok_or(MALFORMED)?;
    if salt.len() > 16 || digest.len() != length || !digest.bytes().all(is_crypt_byte) || rounds < 1000 {
        return Err(MALFORMED);
    }
    if rounds > MAX_SHA_CRYPT_ROUNDS {
        return Err(WrongHash("hash by SHA-crypt with more than 1,000,000 rounds; make one with fewer"));
    }
    Ok(())
}

fn check_argon2(hash: &str) -> Result<(), WrongHash> {
    let mut fields = hash.split('$').skip(1);
    if !matches!(fields.next(), Some("argon2id" | "argon2i" | "argon2d")) {
        return Err(MALFORMED);
    }
    let mut field = fields.next().ok_or(MALFORMED)?;
    if field.starts_with("v=") {
        field = fields.next().ok_or(MALFORMED)?;
    }
    let parameter = |name: &str| {
        let value = field.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value.and_then(|value| value.parse::<u64>().ok()).ok_or(MALFORMED)
    };
    let (memory, passes) = (parameter("m")?, parameter("t")?);
    parameter("p")?;
    let is_text = |field: Option<&str>| field.is_some_and(|field| !field.is_empty());
    if !is_text(fields.next()) || !is_text(fields.next()) || fields.next().is_some() {
        return Err(MALFORMED);
    }
    if memory > MAX_ARGON2_MEMORY || memory.saturating_mul(passes) > MAX_ARGON2_WORK {
        return Err(WrongHash(
            "hash by Argon2 with more than 128 MiB, or 1 GiB for all passes; make one that costs less",
        ));
    }
    Ok(())
}

/// Whether a byte is a digit of crypt(3).
fn is_crypt_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'/'
}
