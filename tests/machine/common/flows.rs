//! Flows of numbered messages both ways between the wire and a guest. They continue whatever
//! happens to the guest, and the report covers every message. The guest's end is
//! `scripts/guest/flow.c`.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::{Bed, Guest, Netns};

/// The first flow's port, on both sides.
const PORT: u16 = 6000;
const TO_GUEST: u64 = 0;
const FROM_GUEST: u64 = 1;
/// How often a receiver looks whether the guest has said how many messages it sent.
const LOOK: Duration = Duration::from_millis(300);
/// Looks in a row without a message, once the number is known, after which missing messages are
/// lost. A loaded machine may hold the last messages up for seconds.
const QUIET_LOOKS_MAX: u32 = 20;
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// Running flows.
#[derive(Debug)]
pub struct Flows {
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<Vec<Vec<f64>>>>,
    receivers: Vec<JoinHandle<Received>>,
    /// The number of messages that the guest has sent in each flow, once it says so.
    sent_there: Arc<OnceLock<Vec<u32>>>,
    /// The id of the guest's end.
    id: u32,
}

#[derive(Debug, Default)]
struct Received {
    damaged: u32,
    /// Number and time, as they came.
    arrivals: Vec<(u32, f64)>,
}

impl Received {
    fn count(&self) -> usize {
        self.arrivals.len() + self.damaged as usize
    }
}

/// The outcome of all flows.
#[derive(Debug)]
pub struct Report {
    /// From the wire.
    pub to_guest: Vec<Flow>,
    /// From the guest.
    pub from_guest: Vec<Flow>,
    /// When messages from the guest arrived, by flow: seconds since 1970, ascending.
    heard: Vec<Vec<f64>>,
}

/// One way of one flow.
#[derive(Debug)]
pub struct Flow {
    /// Messages sent, which are numbered from 0.
    pub sent: u32,
    /// Messages that came with other contents than they have.
    pub damaged: u32,
    /// The messages that came, in the order of arrival, as runs of consecutive numbers.
    pub runs: Vec<(u32, u32)>,
    /// When each was sent, if known: seconds since 1970.
    times: Vec<f64>,
}

/// A time during which the guest was not there: seconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// It begins.
    pub from: f64,
    /// It is over: the guest was heard again.
    pub until: f64,
}

impl Outage {
    fn contains(&self, time: f64) -> bool {
        (self.from..=self.until).contains(&time)
    }
}

impl Flows {
    /// Starts `count` flows between the wire and a guest, a message each way every `pause`.
    pub fn start(bed: &Bed, guest: &mut Guest, count: u16, pause: Duration) -> Self {
        let here = &bed.uplinks[0].wire_address;
        let sockets = bed.wire.enter(|| open_sockets(&guest.spec.address, count));
        let each = |socket: &UdpSocket| socket.try_clone().expect("clone");
        let sending: Vec<UdpSocket> = sockets.iter().map(each).collect();
        let pause_us = pause.as_micros();
        let id = guest.check(&format!("guest-flow {here} {count} {pause_us} </dev/null"));
        let id = id.trim().parse().expect("the id of a process");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sender = std::thread::spawn(move || send_all(&sending, pause, &stopped));
        let sent_there = Arc::<OnceLock<Vec<u32>>>::default();
        let receive = |(flow, socket): (u64, UdpSocket)| {
            let sent = Arc::clone(&sent_there);
            std::thread::spawn(move || receive_all(flow, &socket, &sent))
        };
        let receivers = (0..).zip(sockets).map(receive).collect();
        Self { stop, sender: Some(sender), receivers, sent_there, id }
    }

    /// Ends them and reports their outcome.
    pub fn end(mut self, guest: &mut Guest) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.take().expect("once").join().expect("sending");
        let ended = "until [ -e /tmp/flow ]; do sleep 0.1; done; cat /tmp/flow";
        let told = guest.check(&format!("kill -TERM {}; {ended}", self.id));
        let guest = parse(&told);
        let counts = guest.iter().map(|flow| flow.sent).collect();
        self.sent_there.set(counts).expect("once");
        let mut report = Report { to_guest: Vec::new(), from_guest: Vec::new(), heard: Vec::new() };
        let receivers = std::mem::take(&mut self.receivers).into_iter();
        for ((receiver, times), there) in receivers.zip(sent).zip(guest) {
            let received = receiver.join().expect("receiving");
            report.heard.push(received.arrivals.iter().map(|&(_, time)| time).collect());
            report.from_guest.push(Flow {
                sent: there.sent,
                damaged: received.damaged,
                runs: runs(received.arrivals.iter().map(|&(number, _)| number)),
                times: Vec::new(),
            });
            let sent = u32::try_from(times.len()).expect("a small number");
            report.to_guest.push(Flow { sent, times, ..there });
        }
        report
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A test that failed does not wait for further messages from the guest.
        let _ = self.sent_there.set(vec![0; self.receivers.len()]);
    }
}

impl Report {
    /// The first time after this one that the guest was heard, on any flow.
    pub fn heard_after(&self, time: f64) -> f64 {
        let first = |heard: &Vec<f64>| {
            let place = heard.partition_point(|&heard| heard <= time);
            *heard.get(place).expect("the guest was heard again")
        };
        self.heard.iter().map(first).min_by(f64::total_cmp).expect("a flow")
    }

    /// The longest time between two messages from the guest around these times, seconds.
    pub fn longest_silence(&self, from: f64, until: f64) -> f64 {
        let mut heard = self.heard.concat();
        heard.sort_by(f64::total_cmp);
        let first = heard.partition_point(|&heard| heard < from).saturating_sub(1);
        let last = heard.partition_point(|&heard| heard <= until);
        let around = &heard[first..(last + 1).min(heard.len())];
        around.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
    }

    /// Asserts that no message was damaged or came twice, whatever happened to the guest.
    pub fn assert_exact(&self) {
        for (way, flows) in [("to", &self.to_guest), ("from", &self.from_guest)] {
            for (number, flow) in flows.iter().enumerate() {
                let what = || format!("flow {number} {way} the guest: {flow:?}");
                assert_eq!(flow.damaged, 0, "{}", what());
                assert!(flow.repeated().is_empty(), "{:?} {}", flow.repeated(), what());
                assert!(flow.sent > 0 && !flow.runs.is_empty(), "{}", what());
            }
        }
    }

    /// Messages to the guest that did not come, and were not sent during an outage: flow, number,
    /// and when it was sent.
    pub fn lost_outside(&self, outages: &[Outage]) -> Vec<(usize, u32, f64)> {
        let mut all = Vec::new();
        for (number, flow) in self.to_guest.iter().enumerate() {
            let lost = flow.missing().into_iter().flatten();
            let lost = lost.filter(|&message| {
                let within = |outage: &Outage| outage.contains(flow.time(message));
                !outages.iter().any(within)
            });
            all.extend(lost.map(|message| (number, message, flow.time(message))));
        }
        all
    }

    /// Messages to the guest that came after a later one. A guest of several queue pairs gets a
    /// flow on the pair that it last sent it on. When the guest sends from another processor,
    /// messages on the new pair overtake those that a busy processor has not taken from the old
    /// one.
    pub fn late_to_guest(&self) -> usize {
        self.to_guest.iter().map(|flow| flow.late().len()).sum()
    }

    /// Messages to the guest that were sent during an outage and did not come.
    pub fn lost_within(&self, outage: &Outage) -> usize {
        let lost = self.to_guest.iter().map(|flow| {
            let missing = flow.missing().into_iter().flatten();
            missing.filter(|&message| outage.contains(flow.time(message))).count()
        });
        lost.sum()
    }

    /// Messages from the guest that did not come.
    pub fn lost_from_guest(&self) -> usize {
        self.from_guest.iter().map(|flow| flow.missing().into_iter().flatten().count()).sum()
    }

    /// Messages from the guest that came after a later one.
    pub fn late_from_guest(&self) -> usize {
        self.from_guest.iter().map(|flow| flow.late().len()).sum()
    }

    /// Messages to the guest that did not come.
    pub fn lost_to_guest(&self) -> usize {
        self.to_guest.iter().map(|flow| flow.missing().into_iter().flatten().count()).sum()
    }

    /// All messages sent, both ways.
    pub fn sent(&self) -> u32 {
        self.to_guest.iter().chain(&self.from_guest).map(|flow| flow.sent).sum()
    }
}

impl Flow {
    /// The numbers that did not come.
    pub fn missing(&self) -> Vec<RangeInclusive<u32>> {
        let mut runs = self.runs.clone();
        runs.sort_unstable();
        let (mut missing, mut next) = (Vec::new(), 0);
        for (first, last) in runs.into_iter().chain([(self.sent, self.sent)]) {
            if first > next {
                missing.push(next..=first - 1);
            }
            next = next.max(last + 1);
        }
        missing
    }

    /// The numbers that came more than once.
    pub fn repeated(&self) -> Vec<u32> {
        let mut seen = BTreeSet::new();
        self.numbers().filter(|&number| !seen.insert(number)).collect()
    }

    /// The numbers that came after a higher one.
    pub fn late(&self) -> Vec<u32> {
        let mut highest = None;
        let is_late = |&number: &u32| {
            let late = highest.is_some_and(|highest| number < highest);
            highest = highest.max(Some(number));
            late
        };
        self.numbers().filter(is_late).collect()
    }

    /// When a message was sent.
    pub fn time(&self, number: u32) -> f64 {
        self.times[number as usize]
    }

    fn numbers(&self) -> impl Iterator<Item = u32> {
        self.runs.iter().flat_map(|&(first, last)| first..=last)
    }
}

/// The kernel's counters of messages that left isonic and did not reach the test. They are those of
/// the processors' backlogs, and of the sockets of the namespace "wire".
pub fn kernel_drops(wire: &Netns) -> String {
    let backlogs = wire.run(&["cat", "/proc/net/softnet_stat"]);
    let dropped = |line: &str| u64::from_str_radix(line.split(' ').nth(1)?, 16).ok();
    let dropped: u64 = backlogs.lines().filter_map(dropped).sum();
    let sockets = wire.run(&["grep", "Udp:", "/proc/net/snmp"]);
    let links = wire.run(&["ip", "-stats", "-oneline", "link"]);
    format!("backlogs dropped {dropped} since boot\n{sockets}\n{links}")
}

fn now() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs_f64()
}

fn open_sockets(address: &str, count: u16) -> Vec<UdpSocket> {
    let open = |flow: u16| {
        let socket = UdpSocket::bind(("0.0.0.0", PORT + flow)).expect("socket");
        set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES).expect("receive buffer");
        socket.connect((address, PORT + flow)).expect("connect");
        socket.set_read_timeout(Some(LOOK)).expect("timeout");
        socket
    };
    (0..count).map(open).collect()
}

/// All that a direction, a flow and a number say.
fn message(direction: u64, flow: u64, number: u32) -> Vec<u8> {
    let number = u64::from(number);
    let count = 8 + (number * 7 + flow * 3) % 175;
    let head = number << 32 | flow << 8 | direction;
    let mut state = head.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let rest = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    let words = std::iter::once(head).chain(rest).take(usize::try_from(count).expect("a few"));
    words.flat_map(u64::to_le_bytes).collect()
}

/// Sends on all flows in turn until told to stop: when each message went.
fn send_all(sockets: &[UdpSocket], pause: Duration, stopped: &AtomicBool) -> Vec<Vec<f64>> {
    let mut sent = vec![Vec::new(); sockets.len()];
    while !stopped.load(Ordering::Relaxed) {
        let next = Instant::now() + pause;
        for ((flow, socket), sent) in (0..).zip(sockets).zip(&mut sent) {
            let number = u32::try_from(sent.len()).expect("a small number");
            let time = now();
            // An error may be of a message before, and that this one was not sent.
            if socket.send(&message(TO_GUEST, flow, number)).is_ok() {
                sent.push(time);
            }
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    sent
}

/// Receives until all has come that the guest has sent by its own word, or nothing comes any more.
fn receive_all(flow: u64, socket: &UdpSocket, sent: &OnceLock<Vec<u32>>) -> Received {
    let mut received = Received::default();
    let mut buffer = vec![0; 4096];
    let mut quiet_looks = 0;
    let place = usize::try_from(flow).expect("a small number");
    let sent = || Some(sent.get()?[place] as usize);
    while quiet_looks < QUIET_LOOKS_MAX && sent().is_none_or(|sent| received.count() < sent) {
        let Ok(length) = socket.recv(&mut buffer) else {
            quiet_looks += u32::from(sent().is_some());
            continue;
        };
        quiet_looks = 0;
        let number = buffer[4..8].try_into().expect("four bytes");
        let number = u32::from_le_bytes(number);
        if buffer[..length] == message(FROM_GUEST, flow, number) {
            received.arrivals.push((number, now()));
        } else {
            received.damaged += 1;
        }
    }
    received
}

fn runs(numbers: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    runs
}

/// Read the output of guest-flow.
fn parse(told: &str) -> Vec<Flow> {
    let mut flows: Vec<Flow> = Vec::new();
    for line in told.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("guest-flow: {told}"));
        match (words.as_slice(), flows.last_mut()) {
            (["flow", _, "sent", sent, "damaged", damaged], _) => flows.push(Flow {
                sent: number(sent),
                damaged: number(damaged),
                runs: Vec::new(),
                times: Vec::new(),
            }),
            (["run", first, last], Some(flow)) => flow.runs.push((number(first), number(last))),
            _ => panic!("guest-flow: {told}"),
        }
    }
    flows
}
