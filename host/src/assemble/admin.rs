//! The `[admin]` table of a manifest: the address of the admin listener, and the token that it asks for.

use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::addresses::{Address, ManifestPlace};
use super::{Assembly, beside};
use crate::config::diagnostic::Source;
use crate::config::load::ManifestFile;
use crate::config::manifest::AdminTable;
use crate::config::spanned::Spanned;

/// The settings of the admin listeners.
#[derive(Clone)]
pub struct AdminSettings {
    pub address: AdminAddress,
    /// The token for changes over TCP; `None` if the manifest names no token file.
    pub token: Option<AdminToken>,
    /// The absolute path of the manifest; `None` for a proxy that runs without a manifest.
    pub manifest: Option<PathBuf>,
}

/// The address of the admin listener, besides the socket that is found by the manifest's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// The usual address, if it is free.
    Default,
    At(SocketAddr),
    /// A unix socket instead of a TCP address.
    Unix(PathBuf),
    /// The admin listener is off, without a socket.
    Off,
}

/// A secret that a client shows over TCP. Only its digest is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AdminToken(blake3::Hash);

/// A token file that can't be used; the text names the remedy.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error("can't be read: {0}; expected a file that the user who runs plugway may read")]
    Unreadable(#[from] std::io::Error),
    #[error(
        "is not a regular file; name a file, such as one made by `(umask 077; openssl rand -hex 32 > admin.token)`"
    )]
    NotAFile,
    #[error("can be read by every user of this machine; run `chmod 600` on it")]
    Exposed,
    #[error(
        "holds no token: expected {MIN_TOKEN_CHARS} to {MAX_TOKEN_CHARS} visible ASCII characters in one line; \
         `openssl rand -hex 32` makes one"
    )]
    NoToken,
}

/// The minimum length of a token, in characters: 16 hexadecimal digits have 64 bits, too many to guess.
const MIN_TOKEN_CHARS: usize = 16;

/// The maximum length of a token, in characters: below the maximum of a request head, with room for other fields.
const MAX_TOKEN_CHARS: usize = 512;

/// The maximum length of a token file, in bytes: a token, and the line ends that editors add.
const MAX_TOKEN_FILE_BYTES: u64 = 4 << 10;

impl AdminToken {
    /// The token of that text.
    pub fn new(text: &[u8]) -> Self {
        AdminToken(blake3::hash(text))
    }

    /// Whether a client has sent this token. Digests are compared, in constant time.
    pub fn matches(&self, shown: &[u8]) -> bool {
        self.0 == blake3::hash(shown)
    }
}

impl Assembly<'_> {
    /// The settings of the admin listeners.
    pub(super) fn admin(&mut self, files: &[ManifestFile]) -> AdminSettings {
        let manifest = files.first().filter(|file| file.source.is_file);
        let manifest = manifest.and_then(|file| std::path::absolute(&file.source.path).ok());
        let named = files.iter().find_map(|file| Some((&file.source, file.manifest.admin.as_ref()?)));
        let Some((source, admin)) = named else {
            return AdminSettings { address: AdminAddress::Default, token: None, manifest };
        };
        let address = admin.address.as_ref().map_or(AdminAddress::Default, |text| self.admin_address(source, text));
        let token = admin.token_file.as_ref().and_then(|file| self.admin_token(source, file));
        self.check_reach(source, admin, &address);
        AdminSettings { address, token, manifest }
    }

    /// Reports an admin address that a listener uses.
    pub(super) fn admin_apart(&mut self, files: &[ManifestFile], listener: &Address, text: &str) {
        let named = files.iter().find_map(|file| Some((&file.source, file.manifest.admin.as_ref()?.address.as_ref()?)));
        let Some((source, admin)) = named else { return };
        if Address::parse(admin.get_ref()).is_ok_and(|admin| admin.overlaps(listener)) {
            let message = format!(
                "address used twice: `{}` of the admin listener is taken by the listener at `{text}`; choose another port, \
                 such as `127.0.0.1:9145`",
                admin.get_ref()
            );
            self.problems.at(source, admin.span(), message);
        }
    }

    fn admin_address(&mut self, source: &Arc<Source>, text: &Spanned<String>) -> AdminAddress {
        let address = text.get_ref().as_str();
        match (address, address.strip_prefix("unix:").map(PathBuf::from)) {
            ("off", _) => return AdminAddress::Off,
            (_, Some(path)) if path.is_absolute() => return AdminAddress::Unix(path),
            _ => {}
        }
        address.parse().map_or_else(
            |_| {
                let message = format!(
                    "invalid address `{address}`: expected an address and port such as `127.0.0.1:9145`, an absolute \
                     path such as `unix:/run/plugway-admin.sock`, or `off`"
                );
                self.problems.at(source, text.span(), message);
                AdminAddress::Off
            },
            AdminAddress::At,
        )
    }

    fn admin_token(&mut self, source: &Arc<Source>, file: &Spanned<String>) -> Option<AdminToken> {
        match read_token(&beside(source, file.get_ref())) {
            Ok(token) => Some(token),
            Err(error) => {
                self.problems.at(source, file.span(), format!("the token file `{}` {error}", file.get_ref()));
                None
            }
        }
    }

    /// Reports an admin address that other machines can reach, because without a token all of them could read and
    /// change.
    fn check_reach(&mut self, source: &Arc<Source>, admin: &AdminTable, address: &AdminAddress) {
        if let (AdminAddress::At(at), Some(text), None) = (address, &admin.address, &admin.token_file)
            && !at.ip().to_canonical().is_loopback()
        {
            let message = format!(
                "other machines reach `{at}`, so that requests there need a token: add `token-file = \"admin.token\"`, \
                 made by `(umask 077; openssl rand -hex 32 > admin.token)`, or listen at a loopback address"
            );
            self.problems.at(source, text.span(), message);
        }
    }
}

/// Returns the place of the admin listener's address; `None` if the manifest has none.
pub(super) fn place(files: &[ManifestFile]) -> Option<ManifestPlace> {
    let (source, admin) = files.iter().find_map(|file| Some((&file.source, file.manifest.admin.as_ref()?)))?;
    Some(ManifestPlace { source: source.clone(), span: admin.address.as_ref()?.span() })
}

/// Reads a token from a file, which only its owner and group may read.
fn read_token(path: &Path) -> Result<AdminToken, TokenError> {
    // Opening a FIFO would wait for its writer.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(TokenError::NotAFile);
    }
    if metadata.permissions().mode() & 0o007 != 0 {
        return Err(TokenError::Exposed);
    }
    let mut text = Vec::new();
    file.take(MAX_TOKEN_FILE_BYTES + 1).read_to_end(&mut text)?;
    let token = text.trim_ascii_end();
    let is_token = token.iter().all(u8::is_ascii_graphic);
    if !is_token || !(MIN_TOKEN_CHARS..=MAX_TOKEN_CHARS).contains(&token.len()) {
        return Err(TokenError::NoToken);
    }
    Ok(AdminToken::new(token))
}
