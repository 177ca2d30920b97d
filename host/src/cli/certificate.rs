//! The command that makes a certificate for development: checks its names, and writes both of its files or none.

use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};

use crate::tls;

/// The maximum length of a name, and of each of its labels (RFC 1035 §2.3.4).
const MAX_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

/// Makes a certificate for names and addresses, and writes it and its key to a folder. Returns the text for the user.
pub fn make(names: &[String], folder: &Path) -> anyhow::Result<String> {
    names.iter().try_for_each(|name| check(name))?;
    let (chain, key) = tls::self_signed::self_signed(names)?;
    let [chain_path, key_path] = ["cert.pem", "key.pem"].map(|name| folder.join(name));
    write(&key_path, &key, 0o600)?;
    if let Err(error) = write(&chain_path, &chain, 0o644) {
        // A key alone would be in the way of the next attempt.
        let _ = std::fs::remove_file(key_path);
        return Err(error);
    }
    let [chain, key] = [chain_path, key_path].map(|path| path.strip_prefix(".").unwrap_or(&path).display().to_string());
    let names = names.join(", ");
    Ok(format!(
        "{chain} and {key} are for {names}\n\n[listener.tls]\n\
         certificates = [{{ chain = {chain:?}, key = {key:?} }}]\n"
    ))
}

/// Writes a new file. An existing file may be in use, and is never overwritten.
fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let shown = path.display();
    let mut file = match std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("`{shown}` exists, and is never overwritten: remove it, or name another folder by --out")
        }
        Err(error) => return Err(error).with_context(|| unwritable(path)),
    };
    let written: io::Result<()> = file.write_all(text.as_bytes());
    written.inspect_err(|_| drop(std::fs::remove_file(path))).with_context(|| unwritable(path))
}

fn unwritable(path: &Path) -> String {
    format!("cannot write `{}`: name a folder that exists, and that you may write to, by --out", path.display())
}

/// Checks that a certificate can be for a name. Clients compare names of hosts in their ASCII form, without a dot at the
/// end (RFC 5280 §4.2.1.6, RFC 9525).
fn check(name: &str) -> anyhow::Result<()> {
    let expected = "expected a name such as `example.org` or `*.example.org`, or an address such as `127.0.0.1`";
    if name.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    if !name.is_ascii() {
        bail!("invalid name for a certificate: `{name}`; write it in its ASCII form, which begins with `xn--`");
    }
    if let Some(plain) = name.strip_suffix('.').filter(|plain| is_host(plain)) {
        bail!("invalid name for a certificate: `{name}` ends with a dot; write `{plain}`");
    }
    if !is_host(name) {
        bail!("invalid name for a certificate: {name:?}; {expected}");
    }
    Ok(())
}

/// Whether a text is the name of a host, whose first label may be `*`.
fn is_host(name: &str) -> bool {
    let labels = name.strip_prefix("*.").unwrap_or(name);
    let is_label = |label: &str| {
        let is_of_letters = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        is_of_letters
            && (1..=MAX_LABEL_BYTES).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last label of digits is that of an address (WHATWG URL, "ends in a number").
    let is_address = labels.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    name.len() <= MAX_NAME_BYTES && labels.split('.').all(is_label) && !is_address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_for_names_that_clients_compare() {
        for name in
            ["localhost", "example.org", "*.example.org", "127.0.0.1", "::1", "a_b.internal", "xn--exmple-cua.org"]
        {
            assert!(check(name).is_ok(), "{name}");
        }
        for (name, what) in [
            ("a b", "expected a name such as"),
            ("", "expected a name such as"),
            ("10.0.0.0/8", "expected a name such as"),
            ("http://x", "expected a name such as"),
            ("*", "expected a name such as"),
            ("a.*.b", "expected a name such as"),
            ("256.0.0.1", "expected a name such as"),
            ("example.org.", "write `example.org`"),
            ("exämple.org", "begins with `xn--`"),
        ] {
            let error = check(name).map_or_else(|error| error.to_string(), |()| String::new());
            assert!(error.contains(what), "{name}: {error}");
        }
    }

    #[test]
    fn both_files_are_written_or_none() {
        let names = ["localhost".to_string()];
        let folder = tempfile::tempdir().unwrap();
        for (there, other) in [("key.pem", "cert.pem"), ("cert.pem", "key.pem")] {
            std::fs::write(folder.path().join(there), "old").unwrap();
            let error = make(&names, folder.path()).unwrap_err().to_string();
            assert!(error.contains(there) && error.contains("is never overwritten"), "{error}");
            assert!(!folder.path().join(other).exists(), "{other}");
            std::fs::remove_file(folder.path().join(there)).unwrap();
        }
        let said = make(&names, folder.path()).unwrap();
        assert!(said.contains(&format!("chain = {:?}", folder.path().join("cert.pem"))), "{said}");
        let missing = make(&names, &folder.path().join("missing")).unwrap_err();
        assert!(format!("{missing:#}").contains("by --out: No such file or directory"), "{missing:#}");
    }
}
