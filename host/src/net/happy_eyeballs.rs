//! Connects to one of several addresses of a name (RFC 8305, "Happy Eyeballs"): one attempt after the other, without
//! waiting for those that don't answer. Dropping the race closes all its sockets.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::system::descriptors::is_of_this_machine;

/// The time after which the next address is tried too (RFC 8305 §5).
pub const DELAY: Duration = Duration::from_millis(250);

/// The least time between two attempts, where a short limit has to do for many addresses (RFC 8305 §5).
const MIN_DELAY: Duration = Duration::from_millis(10);

/// Orders addresses for a race: first the last winner, then alternating between the families, beginning with that of
/// the first address (RFC 8305 §4).
pub fn ordered(resolved: &[SocketAddr], last: Option<SocketAddr>) -> SmallVec<[SocketAddr; 2]> {
    let first = resolved.first().is_some_and(SocketAddr::is_ipv6);
    let of_family = |is_ipv6: bool| resolved.iter().copied().filter(move |address| address.is_ipv6() == is_ipv6);
    let (mut one, mut other) = (of_family(first), of_family(!first));
    let mut order = SmallVec::new();
    let mut candidates = vec![last.filter(|last| resolved.contains(last))];
    candidates.extend(resolved.iter().flat_map(|_| [one.next(), other.next()]));
    for address in candidates.into_iter().flatten() {
        if !order.contains(&address) {
            order.push(address);
        }
    }
    order
}

/// Connects to the first address that accepts. `within` is the limit of the caller, which a race of many addresses has to
/// keep to. If all fail, returns the error of the first that the other side is to blame for, or of the last.
pub async fn connect(addresses: &[SocketAddr], within: Duration) -> io::Result<TcpStream> {
    if let [address] = addresses {
        return TcpStream::connect(address).await;
    }
    let delay = (within / (addresses.len() as u32 + 1)).clamp(MIN_DELAY, DELAY);
    let mut race = Race { delay, waiting: addresses.iter(), running: SmallVec::new(), error: None };
    let mut timer = pin!(sleep(delay));
    poll_fn(|cx| race.poll(timer.as_mut(), cx)).await
}

/// Whether the error is one of this machine, which has no descriptors, no ports or no address of a family.
pub fn is_own(error: &io::Error) -> bool {
    is_of_this_machine(error) || error.kind() == io::ErrorKind::AddrNotAvailable
}

/// Returns the more informative of two connection errors.
fn more_telling(before: Option<io::Error>, error: io::Error) -> io::Error {
    before.filter(|before| !is_own(before)).unwrap_or(error)
}

/// A connection attempt to one address.
type Try = Pin<Box<dyn Future<Output = io::Result<TcpStream>>>>;

/// The attempts to connect.
struct Race<'a> {
    delay: Duration,
    waiting: std::slice::Iter<'a, SocketAddr>,
    running: SmallVec<[Try; 2]>,
    error: Option<io::Error>,
}

impl Race<'_> {
    fn poll(&mut self, mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
        loop {
            let mut at = 0;
            let mut has_failed = false;
            while let Some(attempt) = self.running.get_mut(at) {
                match attempt.as_mut().poll(cx) {
                    Poll::Ready(Ok(stream)) => return Poll::Ready(Ok(stream)),
                    Poll::Ready(Err(error)) => {
                        self.error = Some(more_telling(self.error.take(), error));
                        drop(self.running.remove(at));
                        has_failed = true;
                    }
                    Poll::Pending => at += 1,
                }
            }
            let is_due = has_failed || self.running.is_empty() || timer.as_mut().poll(cx).is_ready();
            if !is_due {
                return Poll::Pending;
            }
            match self.waiting.next() {
                Some(address) => {
                    self.running.push(Box::pin(TcpStream::connect(*address)));
                    timer.as_mut().reset(Instant::now() + self.delay);
                }
                None if self.running.is_empty() => {
                    let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                    return Poll::Ready(Err(self.error.take().unwrap_or_else(none)));
                }
                None => return Poll::Pending,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> SmallVec<[SocketAddr; 2]> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_alternate_between_families_after_the_last_winner() {
        let resolved = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "10.0.0.1:1", "10.0.0.2:1"]);
        let alternating = addresses(&["[::1]:1", "10.0.0.1:1", "[::2]:1", "10.0.0.2:1", "[::3]:1"]);
        assert_eq!(ordered(&resolved, None), alternating);
        let after = addresses(&["10.0.0.2:1", "[::1]:1", "10.0.0.1:1", "[::2]:1", "[::3]:1"]);
        assert_eq!(ordered(&resolved, Some("10.0.0.2:1".parse().unwrap())), after);
        let gone = Some("10.0.0.9:1".parse().unwrap());
        assert_eq!(ordered(&resolved, gone), alternating, "a winner that the name no longer has");
        assert_eq!(ordered(&addresses(&["10.0.0.1:1", "10.0.0.1:1"]), None), addresses(&["10.0.0.1:1"]));
        assert!(ordered(&[], None).is_empty());
    }

    #[test]
    fn an_address_that_this_machine_lacks_hides_no_error_of_the_other() {
        let [refused, own] = [io::ErrorKind::ConnectionRefused, io::ErrorKind::AddrNotAvailable];
        for (first, second) in [(refused, own), (own, refused)] {
            let error = more_telling(Some(more_telling(None, first.into())), second.into());
            assert_eq!(error.kind(), refused);
        }
    }

    #[tokio::test]
    async fn the_first_that_accepts_wins_and_all_that_fail_are_an_error() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        // A queue that is full: the system drops what asks for a connection.
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        full.listen(0).unwrap();
        let silent = full.local_addr().unwrap().as_socket().unwrap();
        let connect_now = |_| std::net::TcpStream::connect_timeout(&silent, Duration::from_millis(100));
        let _queued: Vec<_> = (0..3).map(connect_now).collect();
        let within = Duration::from_secs(5);
        let began = Instant::now();
        let stream = connect(&[silent, refusing, silent, good], within).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        let refused = connect(&[refusing, refusing], within).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let short = tokio::time::timeout(Duration::from_millis(500), connect(&[silent, good], within / 20)).await;
        assert_eq!(short.unwrap().unwrap().peer_addr().unwrap(), good, "a limit shorter than the delay");
        assert!(connect(&[], within).await.is_err());
    }
}
