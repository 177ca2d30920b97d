//! The client side of the admin listener, for the commands: finds the proxy that serves a manifest, and sends it a
//! command.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{ADMIN_FIELD, MANIFEST_FIELD, printable, socket};

/// A proxy that a command is sent to.
pub struct RunningProxyAddress {
    /// The absolute path of the manifest that the proxy must serve; `None` if the address alone identifies the proxy.
    pub manifest: Option<PathBuf>,
    /// An address, or `unix:` and a path; `None` if the manifest's path determines it.
    pub address: Option<String>,
    /// The file with the token that commands over TCP need.
    pub token_file: Option<PathBuf>,
}

/// A response of a proxy.
struct AdminResponse {
    status: u16,
    text: String,
}

/// The timeout for connecting and for sending a request: local proxies accept at once.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// The timeout for the first response, by which a server shows what it is.
const GREETING_TIME: Duration = Duration::from_secs(10);

/// The timeout for a response. A reload responds when the manifest is in service, and loading plugins may take minutes.
const ANSWER_TIME: Duration = Duration::from_secs(600);

/// The maximum length of a response, in bytes. All errors of a manifest are shorter.
const MAX_ANSWER_BYTES: u64 = 4 << 20;

/// The maximum length of the head of a first response, in bytes: more than an admin listener sends.
const MAX_HEAD_BYTES: usize = 8 << 10;

/// The maximum length of a token file, in bytes: more than the proxy accepts for its own.
const MAX_TOKEN_FILE_BYTES: u64 = 4 << 10;

const OK: u16 = 200;
const CONFLICT: u16 = 409;

/// A command, with the parts that identify its proxy and its sender.
struct AdminCommand<'a> {
    /// The path and query, such as `/reload`.
    order: &'a str,
    manifest: Option<&'a Path>,
    token: Option<String>,
}

/// Sends a command, such as `/reload`, to a proxy, and returns its response. The error is the proxy's error message.
pub fn order(target: &RunningProxyAddress, order: &str) -> anyhow::Result<String> {
    let token = target.token_file.as_deref().map(token).transpose()?;
    let command = AdminCommand { order, manifest: target.manifest.as_deref(), token };
    let answer = match (&target.address, &target.manifest) {
        (Some(address), _) => {
            let mut stream = connect(address).with_context(|| {
                format!("no answer at the admin address {address}: start the proxy, or name the address that it logs at its start")
            })?;
            ask(&mut stream, &command).with_context(|| format!("the admin address {address}"))?
        }
        (None, Some(manifest)) => find(manifest, &command)?,
        (None, None) => bail!("no proxy named: name its manifest, or its admin listener by --admin"),
    };
    match answer {
        AdminResponse { status: OK, text } => Ok(text),
        AdminResponse { text, .. } => Err(anyhow::anyhow!("{text}")),
    }
}

/// Sends a command to the proxy whose socket is named after the manifest. Otherwise it tries each socket in the same
/// folders, since a link to the manifest may have changed since the start. Proxies of other manifests reject the
/// command.
fn find(manifest: &Path, command: &AdminCommand<'_>) -> anyhow::Result<AdminResponse> {
    let (name, folders) = (socket::name_of(Some(manifest)), socket::folders());
    let named: Vec<PathBuf> = folders.iter().map(|folder| folder.join(&name)).collect();
    let others = folders.iter().flat_map(|folder| socket::sockets_in(folder));
    let others: Vec<PathBuf> = others.filter(|path| !named.contains(path)).collect();
    let mut notes = Vec::new();
    for path in named.iter().chain(&others) {
        let connected = connect(&format!("unix:{}", path.display()));
        if connected.as_ref().is_err_and(is_absent) {
            continue;
        }
        match connected.and_then(|mut stream| ask(&mut stream, command)) {
            Ok(AdminResponse { status: CONFLICT, text }) => notes.push(text),
            Ok(answer) => return Ok(answer),
            Err(error) => notes.push(format!("{}: {error:#}", path.display())),
        }
    }
    let looked = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
    let notes = notes.iter().map(|note| format!("\n{note}")).collect::<String>();
    bail!(
        "no running proxy serves {}: found no admin socket of it in {looked}; start it by `plugway run`, or name its admin \
         listener by --admin, as the proxy logs it at its start{notes}",
        manifest.display()
    )
}

/// Whether an error says that no process listens at a socket.
fn is_absent(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(kind, Some(ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory))
}

/// Sends a command on a connection, once the server there has shown that it is an admin listener: another server could
/// do anything with the command, and would learn the token.
fn ask(stream: &mut Socket, command: &AdminCommand<'_>) -> anyhow::Result<AdminResponse> {
    let host = host_of(stream);
    stream.set_write_timeout(Some(CONNECT_TIME))?;
    stream.set_read_timeout(Some(GREETING_TIME))?;
    stream.write_all(format!("OPTIONS * HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let greeting =
        read_head(stream).context("no answer: start the proxy, or name the address that it logs at its start")?;
    ensure!(
        is_of_admin_listener(&greeting),
        "something else than the admin listener of a proxy answers there: name the address that the proxy logs at its \
         start, as `admin at`"
    );
    ensure!(
        greeting.starts_with("HTTP/1.1 204 "),
        "the command was not sent, since the proxy answered: {}",
        status_line(&greeting)
    );
    let AdminCommand { order, manifest, token } = command;
    let mut head = format!("POST {order} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 0\r\n");
    if let Some(manifest) = manifest {
        let path = percent_encode(manifest.as_os_str().as_bytes(), NON_ALPHANUMERIC);
        head += &format!("{MANIFEST_FIELD}: {path}\r\n");
    }
    if let Some(token) = token {
        head += &format!("Authorization: Bearer {token}\r\n");
    }
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).context("the proxy doesn't answer")?;
    parse(&String::from_utf8_lossy(&answer)).context("the answer is no answer of a proxy")
}

/// Returns the value of `Host` for a connection: the address that was reached. A name is rejected without the token,
/// because a web page may have chosen it.
fn host_of(stream: &Socket) -> String {
    match stream.peer_addr().ok().and_then(|address| address.as_socket()) {
        // Without the number of a network interface, which has no place in a URI.
        Some(SocketAddr::V6(address)) => format!("[{}]:{}", address.ip(), address.port()),
        Some(address) => address.to_string(),
        None => "localhost".into(),
    }
}

/// Returns the head of a response, and what has arrived with it.
fn read_head(stream: &mut Socket) -> anyhow::Result<String> {
    let mut head = Vec::new();
    while memchr::memmem::find(&head, b"\r\n\r\n").is_none() && head.len() < MAX_HEAD_BYTES {
        let mut piece = [0; 1024];
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => head.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bail!("nothing came within {} s", GREETING_TIME.as_secs())
            }
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(!head.is_empty(), "the connection was closed");
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Whether a response has the field of admin listeners in its head.
fn is_of_admin_listener(response: &str) -> bool {
    let head = response.split("\r\n\r\n").next().unwrap_or_default();
    let mut names = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    names.any(|(name, _)| name.eq_ignore_ascii_case(ADMIN_FIELD))
}

fn status_line(response: &str) -> String {
    printable(response.lines().next().unwrap_or_default())
}

fn connect(address: &str) -> anyhow::Result<Socket> {
    let (kind, socket_address) = match address.strip_prefix("unix:") {
        Some(path) => (Domain::UNIX, SockAddr::unix(path)?),
        None => {
            let addresses = address
                .to_socket_addrs()
                .context("invalid address: expected one such as 127.0.0.1:9145 or unix:/path")?;
            return connect_to_any(addresses);
        }
    };
    let socket = Socket::new(kind, Type::STREAM.cloexec(), None)?;
    // The timeout of writes also applies to a connection that waits in a full accept queue.
    socket.set_write_timeout(Some(CONNECT_TIME))?;
    socket.connect(&socket_address)?;
    Ok(socket)
}

/// Connects to the first address of a name that accepts: `localhost` is often `::1` first, where no proxy listens. The
/// error is that of the last address.
fn connect_to_any(addresses: impl IntoIterator<Item = SocketAddr>) -> anyhow::Result<Socket> {
    let mut failure = None;
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIME) {
            Ok(stream) => return Ok(stream.into()),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.context("the name has no address")?.into())
}

fn token(file: &Path) -> anyhow::Result<String> {
    let named = || file.display().to_string();
    let mut text = String::new();
    let opened = std::fs::File::open(file).with_context(|| format!("cannot read the token in `{}`", named()))?;
    opened.take(MAX_TOKEN_FILE_BYTES).read_to_string(&mut text).with_context(named)?;
    let token = text.trim_ascii_end();
    ensure!(token.bytes().all(|byte| byte.is_ascii_graphic()), "{}: a token has visible ASCII characters", named());
    Ok(token.into())
}

fn parse(answer: &str) -> Option<AdminResponse> {
    let (head, text) = answer.split_once("\r\n\r\n").filter(|_| is_of_admin_listener(answer))?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some(AdminResponse { status, text: printable(text.trim_end()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_reached_at_the_address_that_accepts() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let live = listener.local_addr().unwrap();
        for addresses in [vec![live, dead], vec![dead, live]] {
            let socket = connect_to_any(addresses).unwrap();
            assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(live));
        }
        let refused = connect_to_any([dead]).unwrap_err();
        assert!(is_absent(&refused), "{refused:#}");
        assert!(connect_to_any([]).is_err());
    }

    #[test]
    fn a_host_is_the_address_that_was_reached() {
        for (at, host) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]")] {
            let Ok(listener) = std::net::TcpListener::bind(at) else { continue };
            let reached = listener.local_addr().unwrap();
            let name = if reached.is_ipv4() { format!("localhost:{}", reached.port()) } else { reached.to_string() };
            let socket = connect(&name).unwrap();
            assert_eq!(host_of(&socket), format!("{host}:{}", reached.port()));
        }
    }

    #[test]
    fn only_the_head_of_a_response_shows_an_admin_listener() {
        assert!(is_of_admin_listener("HTTP/1.1 204 No Content\r\nPlugway-Admin: 1\r\n\r\n"));
        assert!(!is_of_admin_listener("HTTP/1.1 200 OK\r\nA: b\r\n\r\nPlugway-Admin: 1\r\n"));
        assert!(!is_of_admin_listener("HTTP/1.1 200 Plugway-Admin: 1\r\n\r\n"));
        assert!(parse("HTTP/1.1 200 OK\r\nA: b\r\n\r\nx").is_none());
    }
}
