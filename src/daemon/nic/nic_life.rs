//! One uplink's life while we run: its link goes down and up, its NIC goes away and comes back, its
//! sockets stand still.
//!
//! ```text
//!           link down                    removed
//!   Up ◀─────────────▶ Down ────────────────────▶ Gone ◀── removed ──┐
//!    │   link up        ▲                          │ there again     │
//!    │                  └───────── opened ─────────┴── cannot be ──▶ Failed
//!    └─ stands still, has more queues or no program: closed and opened ─▶ (tried again)
//! ```
//!
//! While the uplink is not Up its sockets are with its [`Nic`] and not with the workers. Frames
//! that guests send there are dropped and counted, and nobody polls for it. While Down, the sockets
//! are kept as they are. When Gone, they are closed, and their memory is freed before new memory is
//! made.
//!
//! This file only decides: observations and actions go through [`NicControl`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::datapath::{SocketReport, UplinkId, WorkerGone};
use crate::metrics::SocketCounter;
use crate::xdp::{BindMode, Link, LinkNews, ModeWish};

use super::nic_control::{NicControl, NotOpened, Reopening};
use super::nic_in_use::Nic;
use super::nic_status::NicState;
use super::open_nic::wish;
use super::stall::{Stall, StallDetector, Trust};

/// Between two looks at state that the kernel may not report: the receiving queues, the attached
/// program, and whether a failed uplink can be opened.
const OTHER_LOOKS: Duration = Duration::from_secs(5);

/// One uplink as its watcher knows it.
#[derive(Debug)]
pub struct NicLife {
    /// Its number.
    pub id: UplinkId,
    /// Its name in the configuration.
    uplink: String,
    /// It is to have a socket on each of its queues.
    all_queues: bool,
    /// How packets are to move, as configured.
    wish: ModeWish,
    /// By queue.
    stall_detectors: BTreeMap<u32, StallDetector>,
    zero_copy: Trust,
    /// When to look next at state that the kernel may not report.
    other_look: Instant,
    /// How often it was closed.
    closings: u64,
    /// The link state that its guests were shown last, if they are shown one.
    shown_up: bool,
}

impl NicLife {
    /// The life of an uplink that is open, with its sockets with the workers, or that is not there
    /// yet.
    pub fn new(nic: &Nic) -> Self {
        Self {
            id: nic.id,
            uplink: nic.config.interface.clone(),
            all_queues: nic.config.queues.is_none(),
            wish: wish(nic.config.mode),
            stall_detectors: BTreeMap::new(),
            zero_copy: Trust::default(),
            other_look: Instant::now() + OTHER_LOOKS,
            closings: 0,
            shown_up: nic.status().state == NicState::Up,
        }
    }

    /// Read the uplink's state, and react to it.
    ///
    /// # Errors
    /// [`WorkerGone`]: the daemon stops.
    pub fn look(
        &mut self,
        nic: &dyn NicControl,
        news: &LinkNews,
        reports: &[SocketReport],
    ) -> Result<(), WorkerGone> {
        let reports: Vec<_> = reports.iter().filter(|report| report.uplink == self.id).collect();
        let other = self.other_look <= Instant::now();
        if other {
            self.other_look = Instant::now() + OTHER_LOOKS;
        }
        let closings = self.closings;
        if news.any || other || reports.iter().any(|report| report.failed) {
            self.look_at_link(nic, news, other)?;
        }
        // Reports of sockets that were closed meanwhile mean nothing.
        for report in reports {
            if closings == self.closings && nic.status().state == NicState::Up {
                self.look_at_socket(nic, report)?;
            }
        }
        Ok(())
    }

    fn look_at_link(
        &mut self,
        nic: &dyn NicControl,
        news: &LinkNews,
        other: bool,
    ) -> Result<(), WorkerGone> {
        let status = nic.status();
        if status.is_open() {
            let index = status.interface.index;
            let removed = news.removed.contains(&index);
            let link = if removed { Ok(None) } else { nic.link_by_index(index) };
            // If the kernel does not answer now, the next look asks again.
            let Ok(link) = link else { return Ok(()) };
            match link {
                Some(link) if other => {
                    self.follow(nic, &link)?;
                    self.look_at_program(nic, &link)?;
                    self.look_at_device(nic, &link)?;
                    nic.look_at_steering();
                    return self.look_at_queues(nic, &link);
                }
                Some(link) => return self.follow(nic, &link),
                None => self.lose(nic)?,
            }
        }
        // It may be back already. A failed open is not retried at every piece of news.
        let failed = nic.status().state == NicState::Failed;
        match nic.link_by_name(&self.uplink) {
            Ok(Some(link)) if link.up && (other || !failed) => self.open(nic, &link),
            Ok(None) if failed => {
                nic.set_state(NicState::Gone, "");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    // ---- the link -------------------------------------------------------------------------------

    /// React to the state of its link.
    fn follow(&mut self, nic: &dyn NicControl, link: &Link) -> Result<(), WorkerGone> {
        let status = nic.status();
        let (uplink, before) = (&self.uplink, &status.interface);
        if before.name != link.name {
            tracing::info!(uplink, now = link.name, "the uplink's interface was renamed");
        }
        if before.mtu != link.mtu {
            tracing::info!(
                uplink,
                mtu = link.mtu,
                was = before.mtu,
                "the uplink's MTU was changed"
            );
        }
        nic.set_link(link)?;
        match (status.state, link.running) {
            (NicState::Up, false) => self.pause(nic),
            (NicState::Down, true) => {
                tracing::info!(uplink, "the uplink's link is up");
                self.resume(nic)
            }
            _ => Ok(()),
        }
    }

    /// Without our program nothing arrives. No message reports that it was detached.
    fn look_at_program(&mut self, nic: &dyn NicControl, link: &Link) -> Result<(), WorkerGone> {
        if !nic.program_is_lost() {
            return Ok(());
        }
        tracing::error!(
            uplink = self.uplink,
            "somebody has detached the uplink's XDP program: it is closed and opened again"
        );
        self.close(nic)?;
        self.open(nic, link)
    }

    /// If a device gets ports, its frames arrive on them, and do not reach a native program.
    fn look_at_device(&mut self, nic: &dyn NicControl, link: &Link) -> Result<(), WorkerGone> {
        if !nic.status().is_open() || nic.look_at_device() {
            return Ok(());
        }
        tracing::warn!(
            uplink = self.uplink,
            "the uplink's frames arrive on ports of it now: it is closed and opened again"
        );
        self.close(nic)?;
        self.open(nic, link)
    }

    /// Frames on a new queue would not reach us. The kernel keeps the queues on which we have
    /// sockets (`ethnl_set_channels` of net/ethtool/channels.c).
    fn look_at_queues(&mut self, nic: &dyn NicControl, link: &Link) -> Result<(), WorkerGone> {
        let status = nic.status();
        let (had, open) = (status.queues.len(), status.is_open());
        if !self.all_queues || !link.running || !open {
            return Ok(());
        }
        if nic.receive_queues(&link.name).is_none_or(|has| has <= had) {
            return Ok(());
        }
        let uplink = &self.uplink;
        tracing::info!(uplink, had, "the uplink has more queues: it is closed and opened again");
        self.close(nic)?;
        self.open(nic, link)
    }

    /// Take the sockets from the workers until the link is up.
    fn pause(&mut self, nic: &dyn NicControl) -> Result<(), WorkerGone> {
        nic.take_sockets()?;
        nic.set_state(NicState::Down, "");
        tracing::warn!(uplink = self.uplink, "the uplink's link is down");
        self.show_link(nic, false);
        Ok(())
    }

    fn resume(&mut self, nic: &dyn NicControl) -> Result<(), WorkerGone> {
        self.stall_detectors.clear();
        nic.give_sockets()?;
        nic.set_state(NicState::Up, "");
        self.show_link(nic, true);
        Ok(())
    }

    fn show_link(&mut self, nic: &dyn NicControl, up: bool) {
        if std::mem::replace(&mut self.shown_up, up) != up {
            nic.show_link(up);
        }
    }

    // ---- the NIC --------------------------------------------------------------------------------

    fn lose(&mut self, nic: &dyn NicControl) -> Result<(), WorkerGone> {
        self.close(nic)?;
        nic.set_state(NicState::Gone, "");
        tracing::error!(
            uplink = self.uplink,
            "the uplink's NIC is gone; it is used again when an interface of that name is up"
        );
        self.show_link(nic, false);
        Ok(())
    }

    fn close(&mut self, nic: &dyn NicControl) -> Result<(), WorkerGone> {
        self.stall_detectors.clear();
        self.closings += 1;
        nic.close()
    }

    /// Open it, and give the workers its sockets if its link is up. Nothing of it may be open.
    fn open(&mut self, nic: &dyn NicControl, link: &Link) -> Result<(), WorkerGone> {
        let before = nic.status();
        let distrusted = self.zero_copy.is_lost();
        let mode = if distrusted { ModeWish::Copy } else { self.wish };
        let reason = "zero-copy stood still again and again; copy until the next start";
        let reason = distrusted.then_some(reason);
        match nic.open(Reopening { link, mode, reason }) {
            Ok(()) => {}
            Err(NotOpened::WorkerGone) => return Err(WorkerGone),
            Err(NotOpened::Problem(problem)) => {
                self.fail(nic, &problem);
                return Ok(());
            }
        }
        if before.state != NicState::Up {
            tracing::info!(uplink = self.uplink, "the uplink is back");
        }
        nic.set_state(NicState::Down, "");
        if link.running { self.resume(nic) } else { Ok(()) }
    }

    /// It cannot be opened now. Each reason is logged once.
    fn fail(&mut self, nic: &dyn NicControl, problem: &str) {
        let status = nic.status();
        if status.state != NicState::Failed || status.problem != problem {
            tracing::error!(
                uplink = self.uplink,
                reason = problem,
                "the uplink cannot be opened again; it is tried until it can"
            );
        }
        nic.set_state(NicState::Failed, problem);
        self.show_link(nic, false);
    }

    // ---- the sockets ----------------------------------------------------------------------------

    fn look_at_socket(
        &mut self,
        nic: &dyn NicControl,
        report: &SocketReport,
    ) -> Result<(), WorkerGone> {
        let SocketReport { queue, progress, failed, .. } = *report;
        let detector =
            self.stall_detectors.entry(queue).or_insert_with(|| StallDetector::new(progress));
        let what = match detector.look(progress) {
            Some(Stall::Transmit) => {
                nic.count_stall(SocketCounter::TxStalls);
                "no frame comes back from being transmitted"
            }
            Some(Stall::Receive) => {
                nic.count_stall(SocketCounter::RxStalls);
                "the kernel finds no frame to receive into"
            }
            None if failed => "its socket has failed",
            None => return Ok(()),
        };
        // The link is read again: it may have gone down just now.
        let link = nic.link_by_index(nic.status().interface.index);
        let Ok(Some(link)) = link else { return Ok(()) };
        tracing::error!(
            uplink = self.uplink,
            queue,
            what,
            frames = progress.transmitting,
            "a queue stands still: the uplink is closed and opened again"
        );
        if !failed {
            self.distrust_zero_copy(nic);
        }
        self.close(nic)?;
        self.open(nic, &link)
    }

    /// A zero-copy socket has stood still: count that against zero-copy.
    fn distrust_zero_copy(&mut self, nic: &dyn NicControl) {
        let socket_mode = nic.status().attachment.socket_mode;
        if socket_mode != BindMode::ZeroCopy || self.wish != ModeWish::Auto {
            return;
        }
        self.zero_copy.stalled(Instant::now());
        if self.zero_copy.is_lost() {
            tracing::error!(
                uplink = self.uplink,
                "zero-copy stood still three times in ten minutes: copy mode from now on"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::io;

    use super::*;
    use crate::daemon::nic::nic_status::NicStatus;
    use crate::xdp::SocketProgress;

    const ID: UplinkId = UplinkId(0);

    /// An uplink as a life sees it, without a kernel, workers or ports.
    struct FakeNic {
        status: RefCell<NicStatus>,
        /// Its link, if the kernel has one.
        link: RefCell<Option<Link>>,
        /// The kernel does not answer.
        silent: Cell<bool>,
        receive_queues: Cell<usize>,
        program_is_lost: Cell<bool>,
        /// Its frames arrive where its program is.
        is_reached: Cell<bool>,
        /// Why it cannot be opened.
        obstacle: RefCell<Option<&'static str>>,
        done: RefCell<Vec<String>>,
    }

    impl FakeNic {
        /// One that is up.
        fn new() -> Self {
            let link = Link {
                index: 2,
                name: "eth0".into(),
                up: true,
                running: true,
                mtu: 1500,
                mac: [2, 0, 0, 0, 0, 1],
            };
            Self {
                status: RefCell::new(NicStatus::sample()),
                link: RefCell::new(Some(link)),
                silent: Cell::new(false),
                receive_queues: Cell::new(2),
                program_is_lost: Cell::new(false),
                is_reached: Cell::new(true),
                obstacle: RefCell::new(None),
                done: RefCell::new(Vec::new()),
            }
        }

        fn note(&self, what: impl Into<String>) {
            self.done.borrow_mut().push(what.into());
        }

        /// The actions since the last call.
        fn done(&self) -> Vec<String> {
            self.done.take()
        }

        fn set_running(&self, running: bool) {
            self.link.borrow_mut().as_mut().expect("a link").running = running;
        }

        fn state(&self) -> NicState {
            self.status.borrow().state
        }
    }

    impl NicControl for FakeNic {
        fn status(&self) -> NicStatus {
            self.status.borrow().clone()
        }

        fn link_by_index(&self, index: u32) -> io::Result<Option<Link>> {
            if self.silent.get() {
                return Err(io::ErrorKind::Other.into());
            }
            Ok(self.link.borrow().clone().filter(|link| link.index == index))
        }

        fn link_by_name(&self, name: &str) -> io::Result<Option<Link>> {
            Ok(self.link.borrow().clone().filter(|link| link.name == name))
        }

        fn receive_queues(&self, _interface: &str) -> Option<usize> {
            Some(self.receive_queues.get())
        }

        fn program_is_lost(&self) -> bool {
            self.program_is_lost.get()
        }

        fn look_at_device(&self) -> bool {
            self.is_reached.get()
        }

        fn look_at_steering(&self) {
            self.note("steering");
        }

        fn set_link(&self, link: &Link) -> Result<(), WorkerGone> {
            let mut status = self.status.borrow_mut();
            status.interface.name.clone_from(&link.name);
            (status.interface.mac, status.interface.mtu) = (link.mac, link.mtu);
            Ok(())
        }

        fn set_state(&self, state: NicState, problem: &str) {
            let mut status = self.status.borrow_mut();
            (status.state, status.problem) = (state, problem.to_owned());
        }

        fn take_sockets(&self) -> Result<(), WorkerGone> {
            self.note("take");
            Ok(())
        }

        fn give_sockets(&self) -> Result<(), WorkerGone> {
            self.note("give");
            Ok(())
        }

        fn close(&self) -> Result<(), WorkerGone> {
            self.note("close");
            Ok(())
        }

        fn open(&self, how: Reopening<'_>) -> Result<(), NotOpened> {
            self.note(format!("open {:?}", how.mode));
            if let Some(problem) = *self.obstacle.borrow() {
                return Err(NotOpened::Problem(problem.to_owned()));
            }
            self.status.borrow_mut().interface.index = how.link.index;
            self.program_is_lost.set(false);
            self.is_reached.set(true);
            Ok(())
        }

        fn count_stall(&self, counter: SocketCounter) {
            self.note(format!("{counter:?}"));
        }

        fn show_link(&self, up: bool) {
            self.note(if up { "show up" } else { "show down" });
        }
    }

    /// The life of an uplink that is up.
    fn life() -> NicLife {
        NicLife {
            id: ID,
            uplink: "eth0".into(),
            all_queues: true,
            wish: ModeWish::Auto,
            stall_detectors: BTreeMap::new(),
            zero_copy: Trust::default(),
            other_look: Instant::now() + OTHER_LOOKS,
            closings: 0,
            shown_up: true,
        }
    }

    /// A look after news of this kind.
    fn look(life: &mut NicLife, nic: &FakeNic, removed: &[u32]) {
        let news = LinkNews { any: true, removed: removed.to_vec() };
        life.look(nic, &news, &[]).unwrap();
    }

    /// A look at state that nobody reports.
    fn other_look(life: &mut NicLife, nic: &FakeNic) {
        life.other_look = Instant::now();
        life.look(nic, &LinkNews::default(), &[]).unwrap();
    }

    #[test]
    fn nothing_is_done_without_news_or_while_the_kernel_does_not_answer() {
        let (mut life, nic) = (life(), FakeNic::new());
        nic.set_running(false);
        life.look(&nic, &LinkNews::default(), &[]).unwrap();
        assert_eq!((nic.done(), nic.state()), (vec![], NicState::Up));
        nic.silent.set(true);
        look(&mut life, &nic, &[]);
        assert_eq!((nic.done(), nic.state()), (vec![], NicState::Up));
    }

    #[test]
    fn while_the_link_is_down_the_workers_have_no_sockets_and_guests_are_shown_it_once() {
        let (mut life, nic) = (life(), FakeNic::new());
        nic.set_running(false);
        look(&mut life, &nic, &[]);
        assert_eq!(
            (nic.done(), nic.state()),
            (vec!["take".into(), "show down".into()], NicState::Down)
        );
        look(&mut life, &nic, &[]);
        assert_eq!(nic.done(), Vec::<String>::new());
        nic.set_running(true);
        look(&mut life, &nic, &[]);
        assert_eq!(
            (nic.done(), nic.state()),
            (vec!["give".into(), "show up".into()], NicState::Up)
        );
    }

    #[test]
    fn a_nic_that_is_removed_is_closed_and_opened_when_one_of_its_name_is_up() {
        let (mut life, nic) = (life(), FakeNic::new());
        let link = nic.link.take().unwrap();
        look(&mut life, &nic, &[2]);
        assert_eq!(
            (nic.done(), nic.state()),
            (vec!["close".into(), "show down".into()], NicState::Gone)
        );
        // It is there and not up yet.
        *nic.link.borrow_mut() = Some(Link { index: 7, up: false, running: false, ..link.clone() });
        look(&mut life, &nic, &[]);
        assert_eq!((nic.done(), nic.state()), (vec![], NicState::Gone));
        *nic.link.borrow_mut() = Some(Link { index: 7, ..link });
        look(&mut life, &nic, &[]);
        let done = nic.done();
        assert_eq!(
            (done, nic.state()),
            (vec!["open Auto".into(), "give".into(), "show up".into()], NicState::Up)
        );
        assert_eq!(nic.status().interface.index, 7);
    }

    #[test]
    fn another_nic_under_its_index_is_not_taken_for_it() {
        let (mut life, nic) = (life(), FakeNic::new());
        nic.link.borrow_mut().as_mut().unwrap().name = "other".into();
        look(&mut life, &nic, &[2]);
        assert_eq!(
            (nic.done(), nic.state()),
            (vec!["close".into(), "show down".into()], NicState::Gone)
        );
    }

    #[test]
    fn a_nic_without_a_carrier_is_opened_and_its_sockets_are_kept() {
        let (mut life, nic) = (life(), FakeNic::new());
        nic.set_state(NicState::Gone, "");
        nic.set_running(false);
        look(&mut life, &nic, &[]);
        assert_eq!((nic.done(), nic.state()), (vec!["open Auto".into()], NicState::Down));
    }

    #[test]
    fn a_nic_that_lacks_a_queue_has_failed_and_is_tried_again_until_it_has_it() {
        let (mut life, nic) = (life(), FakeNic::new());
        nic.set_state(NicState::Gone, "");
        *nic.obstacle.borrow_mut() = Some("it has no queue 1 any more");
        look(&mut life, &nic, &[]);
        assert_eq!(
            (nic.done(), nic.state()),
            (vec!["open Auto".into(), "show down".into()], NicState::Failed)
        );
        assert_eq!(nic.status().problem, "it has no queue 1 any more");
        // A failed open is not retried at every piece of news.
        look(&mut life, &nic, &[]);
        assert_eq!(nic.done(), Vec::<String>::new());
        other_look(&mut life, &nic);
        assert_eq!((nic.done(), nic.state()), (vec!["open Auto".into()], NicState::Failed));
        *nic.obstacle.borrow_mut() = None;
        other_look(&mut life, &nic);
        assert_eq!(nic.state(), NicState::Up);
        assert_eq!((nic.done().len(), nic.status().problem), (3, String::new()));
    }

    #[test]
    fn a_nic_that_has_failed_and_is_removed_is_gone() {
        let (mut life, nic) = (life(), FakeNic::new());
        nic.set_state(NicState::Failed, "its program is refused");
        nic.link.take();
        look(&mut life, &nic, &[2]);
        assert_eq!((nic.state(), nic.status().problem), (NicState::Gone, String::new()));
    }

    #[test]
    fn an_uplink_whose_program_was_detached_is_closed_and_opened_at_the_next_other_look() {
        let (mut life, nic) = (life(), FakeNic::new());
        nic.program_is_lost.set(true);
        look(&mut life, &nic, &[]);
        assert_eq!(nic.done(), Vec::<String>::new());
        other_look(&mut life, &nic);
        assert_eq!(nic.done(), ["close", "open Auto", "give", "steering"]);
        assert_eq!(nic.state(), NicState::Up);
        nic.is_reached.set(false);
        other_look(&mut life, &nic);
        assert_eq!(nic.done(), ["close", "open Auto", "give", "steering"]);
    }

    #[test]
    fn more_queues_are_taken_only_by_an_uplink_that_is_to_have_all() {
        for all_queues in [true, false] {
            let (mut life, nic) = (NicLife { all_queues, ..life() }, FakeNic::new());
            nic.receive_queues.set(4);
            other_look(&mut life, &nic);
            let opened = nic.done().contains(&"open Auto".to_owned());
            assert_eq!(opened, all_queues);
        }
    }

    /// As many looks at a socket that does not move as make a stall.
    fn stall(life: &mut NicLife, nic: &FakeNic) -> Vec<String> {
        for _look in 0..3 {
            let progress = SocketProgress { transmitting: 5, ..SocketProgress::default() };
            let report = SocketReport { uplink: ID, queue: 0, failed: false, progress };
            let of_another = SocketReport { uplink: UplinkId(1), ..report };
            life.look(nic, &LinkNews::default(), &[of_another, report]).unwrap();
        }
        nic.done()
    }

    #[test]
    fn a_queue_that_stands_still_has_its_uplink_opened_again_and_the_third_time_without_zero_copy()
    {
        for socket_mode in [BindMode::ZeroCopy, BindMode::Copy] {
            let (mut life, nic) = (life(), FakeNic::new());
            nic.status.borrow_mut().attachment.socket_mode = socket_mode;
            for mode in [ModeWish::Auto, ModeWish::Auto, ModeWish::Copy] {
                let mode = if socket_mode == BindMode::Copy { ModeWish::Auto } else { mode };
                let done = stall(&mut life, &nic);
                assert_eq!(done, ["TxStalls", "close", &format!("open {mode:?}"), "give"]);
            }
        }
    }

    #[test]
    fn a_socket_that_has_failed_is_no_reason_to_distrust_its_mode() {
        let (mut life, nic) = (life(), FakeNic::new());
        nic.status.borrow_mut().attachment.socket_mode = BindMode::ZeroCopy;
        for _failure in 0..5 {
            let progress = SocketProgress::default();
            let report = SocketReport { uplink: ID, queue: 0, failed: true, progress };
            life.look(&nic, &LinkNews::default(), &[report]).unwrap();
            assert_eq!(nic.done(), ["close", "open Auto", "give"]);
        }
    }
}
