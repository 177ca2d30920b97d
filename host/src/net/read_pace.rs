//! The pace at which connections whose heads take long to parse are read. A head of 16 KiB can stand for thousands of fields
//! (RFC 7541 §6.1), which take milliseconds. Such connections of a worker wait together, so that others have most of its time.
#![expect(clippy::disallowed_methods, reason = "pauses are shorter than the ticks of the worker's clock")]

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::system::thread_time::thread_time;

/// The pace of the reads of one connection.
#[derive(Default)]
pub struct ReadPace {
    /// The CPU time of the thread at the last read, which other threads do not lengthen, and the number of heads in it; `None` if its parse is not measured.
    parsing: Option<(Duration, usize)>,
    /// Whether the next read waits for the worker's turn.
    is_slow: bool,
    pause: Option<Pin<Box<Sleep>>>,
}

thread_local! {
    /// The time at which the next connection of this worker may be read whose heads take long.
    static NEXT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The longest time for which the parse of a head and the begin of its exchange take usually.
const USUAL: Duration = Duration::from_micros(250);

/// The pause after a parse that took long, in times of that.
const PAUSE: u32 = 8;

impl ReadPace {
    /// Records a read with so many heads in it, whose parse is measured. The parser asks for the next read after it.
    pub fn begin(&mut self, heads: usize) {
        self.parsing = Some((thread_time(), heads));
    }

    /// Waits until the connection may be read.
    pub fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some((since, heads)) = self.parsing.take() {
            let pause = pause_after(thread_time().saturating_sub(since), heads);
            self.is_slow = pause.is_some();
            pause.into_iter().for_each(postpone);
        }
        while self.is_slow {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match NEXT.with(Cell::get).filter(|next| Instant::now() < *next) {
                Some(next) => self.pause = Some(Box::pin(tokio::time::sleep_until(next.into()))),
                None => self.is_slow = false,
            }
        }
        Poll::Ready(())
    }
}

/// Makes the next connection whose heads take long wait for so much longer.
fn postpone(pause: Duration) {
    let now = Instant::now();
    NEXT.with(|next| next.set(Some(next.get().map_or(now, |next| next.max(now)) + pause)));
}

/// Returns the pause after a parse of so many heads; `None` if it took no longer than usual.
fn pause_after(parse: Duration, heads: usize) -> Option<Duration> {
    let heads = u32::try_from(heads.max(1)).unwrap_or(u32::MAX);
    (parse > USUAL.saturating_mul(heads)).then(|| parse * PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_take_long_are_paused_after_and_many_heads_are_not() {
        let (short, long) = (Duration::from_micros(900), Duration::from_millis(2));
        assert_eq!([pause_after(short, 4), pause_after(Duration::from_micros(100), 0)], [None, None]);
        assert_eq!([pause_after(short, 3), pause_after(long, 1)], [Some(short * 8), Some(long * 8)]);
    }

    #[tokio::test]
    async fn slow_connections_wait_for_each_other_and_others_do_not() {
        (0..2).for_each(|_| postpone(Duration::from_secs(8)));
        let next = NEXT.with(Cell::get).unwrap();
        assert!(next - Instant::now() > Duration::from_secs(12));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut slow = ReadPace { is_slow: true, ..ReadPace::default() };
        assert!(slow.poll_turn(&mut cx).is_pending());
        let mut other = ReadPace::default();
        other.begin(1_000);
        assert!(other.poll_turn(&mut cx).is_ready());
    }
}
