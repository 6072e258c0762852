//! Standard error as a log that never blocks its writers. Its reader may hang: then a pipe fills
//! up, and a write to it blocks. So lines that cannot be written at once are queued, and a thread
//! writes them.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Most lines that may wait, and most bytes of them.
const LINES_MAX: usize = 4096;
const BYTES_MAX: usize = 4 << 20;
/// How long the end of the process may wait until all lines are written.
const FLUSH_WAIT: Duration = Duration::from_secs(1);
/// Bytes that a pipe takes at once (PIPE_BUF).
const LINE_MAX: usize = 4096;

static STANDARD_ERROR: LogQueue = LogQueue::new();

/// Start the thread that writes the lines of [`LogLine`]s to standard error. `tell_lost` makes the
/// line that reports how many were lost. Call this once.
///
/// # Errors
/// There is no thread to be had.
pub fn start(tell_lost: fn(u64) -> String) -> io::Result<()> {
    let body = move || STANDARD_ERROR.write_to(io::stderr(), tell_lost);
    thread::Builder::new().name("log".to_owned()).spawn(body).map(drop)
}

/// Wait until all logged lines are written, a second at most. Returns whether they are.
pub fn flush() -> bool {
    STANDARD_ERROR.flush(FLUSH_WAIT)
}

/// End the process here. Its last lines are written if there is a reader.
pub fn exit(status: i32) -> ! {
    flush();
    std::process::exit(status)
}

/// Takes one line with each write, and never blocks.
#[derive(Debug)]
pub struct LogLine;

impl Write for LogLine {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !STANDARD_ERROR.write_now(line, io::stderr()) {
            STANDARD_ERROR.push(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_ready(out: &impl AsFd) -> bool {
    let mut polled = [PollFd::new(out, PollFlags::OUT)];
    let ready = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    ready.is_ok() && polled[0].revents() == PollFlags::OUT
}

/// Lines on their way to one thread. Lines beyond the limit are lost.
#[derive(Debug)]
struct LogQueue {
    waiting: Mutex<Waiting>,
    /// For the thread: there is something to write.
    filled: Condvar,
    /// For flushers: all lines are written.
    written: Condvar,
}

#[derive(Debug)]
struct Waiting {
    lines: VecDeque<Line>,
    bytes: usize,
    /// How many were lost after the last of these lines.
    lost: u64,
    /// The thread is writing a line.
    is_writing: bool,
}

/// How many lines were lost at this place, and the line after them, which is missing at the end of
/// the queue.
#[derive(Debug, PartialEq)]
struct Line {
    lost: u64,
    text: Option<Vec<u8>>,
}

impl LogQueue {
    const fn new() -> Self {
        let waiting = Waiting { lines: VecDeque::new(), bytes: 0, lost: 0, is_writing: false };
        Self { waiting: Mutex::new(waiting), filled: Condvar::new(), written: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Write a line at once, if that cannot block and no other line waits. The line is then written
    /// before its event has visible effects, and even if the process is killed. False if it is not
    /// written.
    ///
    /// A pipe that is ready has room for [`LINE_MAX`] (pipe(7)), a socket for more.
    fn write_now(&self, text: &[u8], mut out: impl Write + AsFd) -> bool {
        let waiting = self.lock();
        let is_first = !waiting.is_writing && waiting.is_empty();
        is_first && text.len() <= LINE_MAX && is_ready(&out) && out.write_all(text).is_ok()
    }

    fn push(&self, text: &[u8]) {
        // Memory is allocated before the lock is taken, so nobody waits for long.
        let text = text.to_vec();
        let mut waiting = self.lock();
        if waiting.lines.len() >= LINES_MAX || waiting.bytes + text.len() > BYTES_MAX {
            waiting.lost += 1;
            return;
        }
        let lost = std::mem::take(&mut waiting.lost);
        waiting.bytes += text.len();
        waiting.lines.push_back(Line { lost, text: Some(text) });
        drop(waiting);
        self.filled.notify_one();
    }

    /// Wait for the next line. The one before it is written.
    fn next(&self) -> Line {
        let mut waiting = self.lock();
        waiting.is_writing = false;
        loop {
            if let Some(line) = waiting.take() {
                waiting.is_writing = true;
                return line;
            }
            self.written.notify_all();
            waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Write lines for ever.
    fn write_to(&self, mut out: impl Write, tell_lost: fn(u64) -> String) {
        let mut lost = 0;
        loop {
            let line = self.next();
            lost += line.lost;
            if lost > 0 && out.write_all(tell_lost(lost).as_bytes()).is_ok() {
                lost = 0;
            }
            // An error (no reader, a full disk) loses this line and no other.
            if line.text.is_some_and(|text| out.write_all(&text).is_err()) {
                lost += 1;
            }
        }
    }

    fn flush(&self, wait: Duration) -> bool {
        let is_behind = |waiting: &mut Waiting| waiting.is_writing || !waiting.is_empty();
        let waited = self.written.wait_timeout_while(self.lock(), wait, is_behind);
        let (_waiting, result) = waited.unwrap_or_else(PoisonError::into_inner);
        !result.timed_out()
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.lost == 0
    }

    fn take(&mut self) -> Option<Line> {
        if self.is_empty() {
            return None;
        }
        let line = self.lines.pop_front();
        let line =
            line.unwrap_or_else(|| Line { lost: std::mem::take(&mut self.lost), text: None });
        self.bytes -= line.text.as_ref().map_or(0, Vec::len);
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn tell_lost(lost: u64) -> String {
        format!("{lost} lost\n")
    }

    #[test]
    fn lines_that_are_lost_are_counted_where_they_were_lost() {
        let queue = LogQueue::new();
        (0..LINES_MAX + 3).for_each(|_| queue.push(b"early\n"));
        assert_eq!(queue.next(), Line { lost: 0, text: Some(b"early\n".to_vec()) });
        queue.push(b"late\n");
        queue.push(b"lost\n");
        (1..LINES_MAX).for_each(|_| assert_eq!(queue.next().lost, 0));
        assert_eq!(queue.next(), Line { lost: 3, text: Some(b"late\n".to_vec()) });
        assert_eq!(queue.next(), Line { lost: 1, text: None });
        let waiting = queue.lock();
        assert!(waiting.is_empty() && waiting.bytes == 0, "{waiting:?}");
    }

    #[test]
    fn long_lines_are_bounded_in_bytes() {
        let queue = LogQueue::new();
        let line = vec![b'x'; BYTES_MAX / 4];
        (0..5).for_each(|_| queue.push(&line));
        (0..4).for_each(|_| assert_eq!(queue.next().lost, 0));
        assert_eq!(queue.next(), Line { lost: 1, text: None });
    }

    #[test]
    fn a_full_pipe_makes_nobody_wait_and_its_reader_hears_what_it_has_missed() {
        let (mut reader, writer) = io::pipe().unwrap();
        let queue: &'static LogQueue = Box::leak(Box::new(LogQueue::new()));
        let direct = writer.try_clone().unwrap();
        thread::spawn(move || queue.write_to(writer, tell_lost));
        // A pipe has 64 KiB.
        let line = [vec![b'x'; 99], vec![b'\n']].concat();
        let count = LINES_MAX + 2000;
        let at_once = (0..count).filter(|_| {
            let written = queue.write_now(&line, &direct);
            if !written {
                queue.push(&line);
            }
            written
        });
        let at_once = at_once.count();
        assert!((1..=655).contains(&at_once), "{at_once} of 100 bytes were written at once");
        assert!(!queue.flush(Duration::from_millis(10)));
        // Lines are lost in more than one place if the thread takes its first line late.
        let told = |text: &str| -> usize {
            let lost = |line: &str| line.strip_suffix(" lost")?.parse().ok();
            text.lines().map(|line| lost(line).unwrap_or(1)).sum::<usize>()
        };
        let read = thread::spawn(move || {
            let (mut text, mut part) = (String::new(), [0; 4096]);
            while !text.ends_with('\n') || told(&text) < count {
                let length = reader.read(&mut part).unwrap();
                text += std::str::from_utf8(&part[..length]).unwrap();
            }
            text
        });
        let text = read.join().unwrap();
        assert!(text.contains(" lost\n"));
        assert_eq!(told(&text), count);
        assert!(queue.flush(Duration::from_secs(10)));
    }
}
