//! Signals to guests, with their cost charged to the port.
//!
//! A signal is a write to an eventfd that the front-end holds too, so the front-end decides its
//! cost. The kernel calls every watcher of the descriptor before the write returns
//! (`eventfd_write`): with thousands of watchers it takes milliseconds. A front-end can also make
//! the write block.
//!
//! So each signal is timed. The time above [`FREE`] is added to its port's debt; a thousandth of
//! the time that passes pays it off. While a port owes more than [`CREDIT`], another thread sends
//! its signals. So no port can take more than a thousandth of a worker's time for long.
//!
//! A port may also run up debt because its worker was not scheduled. Its signals are then a little
//! late for a while.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};

use crate::platform::interrupt::InterruptibleThread;
use crate::virtqueue::{EventFd, Fault};

/// Time that a signal may take: a write to an eventfd, and the wake-up of its waiter.
const FREE: Duration = Duration::from_micros(20);
/// Debt of a port above which another thread sends its signals.
const CREDIT: Duration = Duration::from_millis(2);
/// Time in which a nanosecond of debt is paid off, nanoseconds.
const PAID_IN: u32 = 1000;

/// How long the other thread may be in one signal before it is interrupted.
const STUCK: Duration = Duration::from_millis(100);

/// The debt of a port for its signals.
#[derive(Clone, Copy, Debug, Default)]
struct Debt {
    owed: Duration,
    /// When `owed` was true.
    since: Option<Instant>,
}

impl Debt {
    /// Whether it is more than the credit.
    #[inline]
    fn is_too_much(&mut self, now: Instant) -> bool {
        !self.owed.is_zero() && self.left(now) > CREDIT
    }

    #[cold]
    fn left(&mut self, now: Instant) -> Duration {
        let paid = self.since.map_or(Duration::ZERO, |since| (now - since) / PAID_IN);
        self.owed = self.owed.saturating_sub(paid);
        self.since = Some(now);
        self.owed
    }

    #[inline]
    fn add(&mut self, took: Duration, now: Instant) {
        if took > FREE {
            self.owed = self.left(now) + (took - FREE);
        }
    }
}

/// How a port's rings are signalled.
#[derive(Debug, Default)]
pub(super) struct Signalling {
    debt: Debt,
    /// For each ring whose signals the other thread sends: whether a signal waits there.
    waiting: Vec<Arc<AtomicBool>>,
}

impl Signalling {
    /// Signal by `event`, of ring `index`. The clock was read at `now`, just before.
    ///
    /// # Errors
    /// As [`EventFd::signal`].
    #[inline]
    pub fn signal(
        &mut self,
        other: &mut Signaller,
        index: u16,
        event: &EventFd,
        now: &mut Instant,
    ) -> Result<(), Fault> {
        if self.debt.is_too_much(*now) {
            self.send(other, index, event);
            return Ok(());
        }
        let signalled = event.signal();
        let before = std::mem::replace(now, Instant::now());
        self.debt.add(*now - before, *now);
        signalled
    }

    #[cold]
    fn send(&mut self, other: &mut Signaller, index: u16, event: &EventFd) {
        let index = usize::from(index);
        if self.waiting.len() <= index {
            self.waiting.resize_with(index + 1, Arc::default);
        }
        other.send(&self.waiting[index], event);
    }
}

/// A signal that the other thread is to send.
#[derive(Debug)]
struct WaitingSignal {
    waits: Arc<AtomicBool>,
    event: EventFd,
}

/// The other thread. At most one signal per ring waits for it: one is as good as many.
#[derive(Debug)]
pub(super) struct Signaller {
    sender: Sender<WaitingSignal>,
    /// Signals sent.
    sent: Arc<AtomicU64>,
    /// How many were asked for.
    asked: u64,
    /// How many had been sent at that time, when some had not.
    seen: Option<(u64, Instant)>,
    thread: InterruptibleThread,
}

impl Signaller {
    /// Start the thread; it ends when this is dropped.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn start() -> io::Result<Self> {
        let (sender, receiver) = unbounded();
        let sent = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&sent);
        let body = move || send_all(&receiver, &counted);
        let thread = InterruptibleThread::spawn("signals".to_owned(), body)?;
        Ok(Self { sender, sent, asked: 0, seen: None, thread })
    }

    fn send(&mut self, waits: &Arc<AtomicBool>, event: &EventFd) {
        if waits.swap(true, Ordering::AcqRel) {
            return;
        }
        let waiting = WaitingSignal { waits: Arc::clone(waits), event: event.clone() };
        // The thread ends after us.
        let _ = self.sender.send(waiting);
        self.asked += 1;
    }

    /// Whether some signals have not been sent. The thread is interrupted if one of them takes too
    /// long: a front-end may have made the write block.
    pub fn is_behind(&mut self) -> bool {
        let sent = self.sent.load(Ordering::Acquire);
        if sent == self.asked {
            self.seen = None;
            return false;
        }
        match self.seen {
            Some((before, since)) if before == sent => {
                if since.elapsed() > STUCK {
                    self.thread.interrupt();
                    self.seen = None;
                }
            }
            _ => self.seen = Some((sent, Instant::now())),
        }
        true
    }
}

fn send_all(signals: &Receiver<WaitingSignal>, sent: &AtomicU64) {
    for WaitingSignal { waits, event } in signals {
        // A request from now on is another signal.
        waits.store(false, Ordering::Release);
        event.signal_apart();
        drop(event);
        sent.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_signal_costs_is_owed_until_a_thousand_times_that_has_passed() {
        let (mut debt, start) = (Debt::default(), Instant::now());
        debt.add(FREE, start);
        assert!(!debt.is_too_much(start), "what every signal costs is free");
        debt.add(FREE + CREDIT, start);
        assert!(!debt.is_too_much(start));
        debt.add(FREE + Duration::from_millis(3), start);
        assert!(debt.is_too_much(start));
        assert!(debt.is_too_much(start + Duration::from_millis(2999)));
        assert!(!debt.is_too_much(start + Duration::from_secs(3)));
        debt.add(FREE + Duration::from_millis(1), start + Duration::from_secs(3));
        assert!(debt.is_too_much(start + Duration::from_secs(3)));
    }

    #[test]
    fn a_signal_that_waits_is_asked_for_once_and_sent() {
        let event = || {
            let flags = rustix::event::EventfdFlags::NONBLOCK;
            std::fs::File::from(rustix::event::eventfd(0, flags).unwrap())
        };
        let ours = event();
        let event = EventFd::new(ours.try_clone().unwrap()).unwrap();
        let mut other = Signaller::start().unwrap();
        let mut signalling = Signalling::default();
        let (mut now, mut sent) = (Instant::now(), 0);
        signalling.debt.add(Duration::from_secs(1), now);
        for _ in 0..100 {
            signalling.signal(&mut other, 3, &event, &mut now).unwrap();
        }
        while other.is_behind() {
            std::thread::yield_now();
        }
        let mut count = [0; 8];
        rustix::io::read(&ours, &mut count).unwrap();
        sent += u64::from_ne_bytes(count);
        assert!((1..=100).contains(&sent) && sent == other.asked, "{sent} of {}", other.asked);
    }
}
