//! One uplink's life while we run: its link goes down and up, its NIC goes away and comes back,
//! its sockets stand still.
//!
//! ```text
//!           link down                    removed
//!   Up ◀─────────────▶ Down ────────────────────▶ Gone ◀── removed ──┐
//!    │   link up        ▲                          │ there again     │
//!    │                  └───────── opened ─────────┴── cannot be ──▶ Failed
//!    └─ stands still, has more queues or no program: closed and opened ─▶ (tried again)
//! ```
//!
//! While the uplink is not Up its sockets are kept by its [`Nic`] and not by the workers: what guests
//! send there is dropped and counted, and nobody polls for it. Down, they are kept as they are; Gone,
//! they are closed, and their memory is given back before there is other.
//!
//! Decisions only: what is seen and done goes through [`NicControl`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::datapath::{SocketReport, UplinkId, WorkerGone};
use crate::metrics::SocketCounter;
use crate::xdp::{Link, LinkNews, ModeWish, SocketMode};

use super::nic_control::{NicControl, NotOpened, Reopening};
use super::nic_in_use::Nic;
use super::nic_status::NicState;
use super::open_nic::wish;
use super::stall::{Stall, Suspicion, Trust};

/// Between two looks at what nobody may have told of: queues and which of them receive, whether the
/// program is still there, and whether an uplink that failed can be opened by now.
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
    suspicions: BTreeMap<u32, Suspicion>,
    zero_copy: Trust,
    /// When to look at what nobody may have told of.
    other_look: Instant,
    /// How often it was closed.
    closings: u64,
    /// What its guests were shown last, if they are shown anything.
    shown_up: bool,
}

impl NicLife {
    /// Of an uplink that is open and whose sockets are with the workers, or that is not there yet.
    pub fn new(nic: &Nic) -> Self {
        Self {
            id: nic.id,
            uplink: nic.config.interface.clone(),
            all_queues: nic.config.queues.is_none(),
            wish: wish(nic.config.mode),
            suspicions: BTreeMap::new(),
            zero_copy: Trust::default(),
            other_look: Instant::now() + OTHER_LOOKS,
            closings: 0,
            shown_up: nic.status().state == NicState::Up,
        }
    }

    /// See how the uplink is, and do what is to be done about it.
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
        // Reports of sockets that are closed by now say nothing.
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
            // What the kernel does not answer now is asked at the next look.
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
        // It may be back already. What has failed is not tried at every piece of news.
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

    /// Its link is so now.
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

    /// Without our program nothing arrives. No message tells of that.
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

    /// A device that gets ports has its frames arrive on them, where a native program is lost.
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

    /// Frames that arrive on a new queue would pass us by. The kernel keeps those that we have
    /// (`ethnl_set_channels` of net/ethtool/channels.c).
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
        self.suspicions.clear();
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
        self.suspicions.clear();
        self.closings += 1;
        nic.close()
    }

    /// Open it, of which nothing is open, and give the workers its sockets if its link is up.
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

    /// It cannot be opened now. Each reason is told once.
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
        let suspicion = self.suspicions.entry(queue).or_insert_with(|| Suspicion::new(progress));
        let what = match suspicion.look(progress) {
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
        // Asked anew: it may have gone down just now.
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

    /// A zero-copy socket has stood still.
    fn distrust_zero_copy(&mut self, nic: &dyn NicControl) {
        if nic.status().socket_mode != SocketMode::ZeroCopy || self.wish != ModeWish::Auto {
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
