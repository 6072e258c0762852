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
//! While the uplink is not Up its sockets are here and not with the workers: what guests send there
//! is dropped and counted, and nobody polls for it. Down, they are kept as they are; Gone, they are
//! closed, and their memory is given back before there is other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::datapath::{SocketReport, UplinkId, WorkerGone, WorkerId};
use crate::device::mac::MacAddress;
use crate::metrics::SocketCounter;
use crate::report::chain;
use crate::xdp::{Interface, Link, LinkNews, Links, ModeWish, Socket, SocketMode};

use super::nics::{Nic, NicState};
use super::stall::{Stall, Suspicion, Trust};
use crate::daemon::host_port::HostNic;
use crate::daemon::ports::Registry;

/// Between two looks at what nobody may have told of: queues and which of them receive, whether the
/// program is still there, and whether an uplink that failed can be opened by now.
const OTHER_LOOKS: Duration = Duration::from_secs(5);

/// One uplink as its watcher knows it.
#[derive(Debug)]
pub struct NicLife {
    id: UplinkId,
    /// The sockets, while the link is down.
    held: Vec<(WorkerId, Socket)>,
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
            held: Vec::new(),
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
        registry: &Registry,
        links: &Links,
        news: &LinkNews,
        reports: &[SocketReport],
    ) -> Result<(), WorkerGone> {
        let Some(nic) = registry.nics.iter().find(|nic| nic.id == self.id) else { return Ok(()) };
        nic.count();
        let reports: Vec<_> = reports.iter().filter(|report| report.uplink == nic.id).collect();
        let other = self.other_look <= Instant::now();
        if other {
            self.other_look = Instant::now() + OTHER_LOOKS;
        }
        let closings = self.closings;
        if news.any || other || reports.iter().any(|report| report.failed) {
            self.look_at_link(registry, nic, (links, news), other)?;
        }
        // Reports of sockets that are closed by now say nothing.
        for report in reports {
            if closings == self.closings && nic.status().state == NicState::Up {
                self.look_at_socket(registry, nic, links, report)?;
            }
        }
        Ok(())
    }

    fn look_at_link(
        &mut self,
        registry: &Registry,
        nic: &Nic,
        (links, news): (&Links, &LinkNews),
        other: bool,
    ) -> Result<(), WorkerGone> {
        let status = nic.status();
        if status.is_open() {
            let index = status.interface.index;
            let removed = news.removed.contains(&index);
            let link = if removed { Ok(None) } else { links.by_index(index) };
            // What the kernel does not answer now is asked at the next look.
            let Ok(link) = link else { return Ok(()) };
            match link {
                Some(link) if other => {
                    self.follow(registry, nic, &link)?;
                    self.look_at_program(registry, nic, &link)?;
                    self.look_at_device(registry, nic, &link)?;
                    nic.look_at_steering();
                    return self.look_at_queues(registry, nic, &link);
                }
                Some(link) => return self.follow(registry, nic, &link),
                None => self.lose(registry, nic)?,
            }
        }
        // It may be back already. What has failed is not tried at every piece of news.
        let failed = nic.status().state == NicState::Failed;
        match links.by_name(&nic.config.interface) {
            Ok(Some(link)) if link.up && (other || !failed) => self.open(registry, nic, &link),
            Ok(None) if failed => {
                nic.set_state(NicState::Gone, "");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    // ---- the link -------------------------------------------------------------------------------

    /// Its link is so now.
    fn follow(&mut self, registry: &Registry, nic: &Nic, link: &Link) -> Result<(), WorkerGone> {
        let status = nic.status();
        let (uplink, before) = (&nic.config.interface, &status.interface);
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
        nic.set_link(link);
        registry.fabric.set_host_nic(nic.id, HostNic::of(&nic.status().interface))?;
        if before.mac != link.mac {
            change_mac(registry, nic, (before.mac, link.mac));
        }
        match (status.state, link.running) {
            (NicState::Up, false) => self.pause(registry, nic),
            (NicState::Down, true) => {
                tracing::info!(uplink, "the uplink's link is up");
                self.resume(registry, nic)
            }
            _ => Ok(()),
        }
    }

    /// Without our program nothing arrives. No message tells of that.
    fn look_at_program(
        &mut self,
        registry: &Registry,
        nic: &Nic,
        link: &Link,
    ) -> Result<(), WorkerGone> {
        if !nic.program_is_lost() {
            return Ok(());
        }
        tracing::error!(
            uplink = nic.config.interface,
            "somebody has detached the uplink's XDP program: it is closed and opened again"
        );
        self.close(registry, nic)?;
        self.open(registry, nic, link)
    }

    /// A device that gets ports has its frames arrive on them, where a native program is lost.
    fn look_at_device(
        &mut self,
        registry: &Registry,
        nic: &Nic,
        link: &Link,
    ) -> Result<(), WorkerGone> {
        if !nic.status().is_open() || nic.look_at_device() {
            return Ok(());
        }
        tracing::warn!(
            uplink = nic.config.interface,
            "the uplink's frames arrive on ports of it now: it is closed and opened again"
        );
        self.close(registry, nic)?;
        self.open(registry, nic, link)
    }

    /// Frames that arrive on a new queue would pass us by. The kernel keeps those that we have
    /// (`ethnl_set_channels` of net/ethtool/channels.c).
    fn look_at_queues(
        &mut self,
        registry: &Registry,
        nic: &Nic,
        link: &Link,
    ) -> Result<(), WorkerGone> {
        let had = nic.status().queues.len();
        let has = Interface::read(&link.name).map(|interface| interface.receive_queues as usize);
        let open = nic.status().is_open();
        let more = nic.config.queues.is_none() && has.is_ok_and(|has| has > had);
        if !link.running || !open || !more {
            return Ok(());
        }
        let uplink = &nic.config.interface;
        tracing::info!(uplink, had, "the uplink has more queues: it is closed and opened again");
        self.close(registry, nic)?;
        self.open(registry, nic, link)
    }

    /// Take the sockets from the workers until the link is up.
    fn pause(&mut self, registry: &Registry, nic: &Nic) -> Result<(), WorkerGone> {
        self.held = registry.fabric.take_sockets(nic.id)?;
        nic.set_state(NicState::Down, "");
        tracing::warn!(uplink = nic.config.interface, "the uplink's link is down");
        self.show_link(registry, nic, false);
        Ok(())
    }

    fn resume(&mut self, registry: &Registry, nic: &Nic) -> Result<(), WorkerGone> {
        self.suspicions.clear();
        registry.fabric.give_sockets(nic.id, std::mem::take(&mut self.held))?;
        nic.set_state(NicState::Up, "");
        self.show_link(registry, nic, true);
        Ok(())
    }

    fn show_link(&mut self, registry: &Registry, nic: &Nic, up: bool) {
        if std::mem::replace(&mut self.shown_up, up) != up {
            registry.show_link(nic, up);
        }
    }

    // ---- the NIC --------------------------------------------------------------------------------

    fn lose(&mut self, registry: &Registry, nic: &Nic) -> Result<(), WorkerGone> {
        self.close(registry, nic)?;
        nic.set_state(NicState::Gone, "");
        tracing::error!(
            uplink = nic.config.interface,
            "the uplink's NIC is gone; it is used again when an interface of that name is up"
        );
        self.show_link(registry, nic, false);
        Ok(())
    }

    /// Close sockets, program and packet socket. What was in the sockets' rings is counted.
    fn close(&mut self, registry: &Registry, nic: &Nic) -> Result<(), WorkerGone> {
        let mut sockets = registry.fabric.take_sockets(nic.id)?;
        sockets.append(&mut self.held);
        self.suspicions.clear();
        self.closings += 1;
        for (_, socket) in &mut sockets {
            let abandoned = socket.abandoned();
            nic.counters.add(SocketCounter::RxFramesAbandoned, abandoned.received);
            nic.counters.add(SocketCounter::TxFramesAbandoned, abandoned.transmitting);
        }
        registry.fabric.set_memory(nic.id, None)?;
        nic.close();
        Ok(())
    }

    /// Open it, of which nothing is open, and give the workers its sockets if its link is up.
    fn open(&mut self, registry: &Registry, nic: &Nic, link: &Link) -> Result<(), WorkerGone> {
        let before = nic.status();
        let distrusted = self.zero_copy.is_lost();
        let wish = if distrusted { ModeWish::Copy } else { nic.wish() };
        let workers = registry.fabric.workers().len();
        let dealt = match nic.open_again(&link.name, wish, workers) {
            Ok(dealt) => dealt,
            Err(error) => {
                self.fail(registry, nic, &chain(&error));
                return Ok(());
            }
        };
        if distrusted {
            nic.set_reason("zero-copy stood still again and again; copy until the next start");
        }
        registry.fabric.set_host_nic(nic.id, HostNic::of(&nic.status().interface))?;
        let prepared = registry.redirect(nic).map_err(|error| chain(&error));
        let prepared = prepared
            .and_then(|()| nic.start_threads(&registry.fabric).map_err(|error| error.to_string()));
        if let Err(problem) = prepared {
            drop(dealt);
            nic.close();
            self.fail(registry, nic, &problem);
            return Ok(());
        }
        if let Err(error) = registry.record() {
            tracing::error!(error = chain(&error), "what the uplinks are like is not kept");
        }
        let umem = dealt.first().map(|(_, socket)| Arc::clone(socket.umem()));
        registry.fabric.set_memory(nic.id, umem.as_ref())?;
        self.held = dealt;
        if before.state != NicState::Up {
            tracing::info!(uplink = nic.config.interface, "the uplink is back");
        }
        nic.set_state(NicState::Down, "");
        if link.running { self.resume(registry, nic) } else { Ok(()) }
    }

    /// It cannot be opened now. Each reason is told once.
    fn fail(&mut self, registry: &Registry, nic: &Nic, problem: &str) {
        let status = nic.status();
        if status.state != NicState::Failed || status.problem != problem {
            tracing::error!(
                uplink = nic.config.interface,
                reason = problem,
                "the uplink cannot be opened again; it is tried until it can"
            );
        }
        nic.set_state(NicState::Failed, problem);
        self.show_link(registry, nic, false);
    }

    // ---- the sockets ----------------------------------------------------------------------------

    fn look_at_socket(
        &mut self,
        registry: &Registry,
        nic: &Nic,
        links: &Links,
        report: &SocketReport,
    ) -> Result<(), WorkerGone> {
        let SocketReport { queue, progress, failed, .. } = *report;
        let suspicion = self.suspicions.entry(queue).or_insert_with(|| Suspicion::new(progress));
        let what = match suspicion.look(progress) {
            Some(Stall::Transmit) => {
                nic.counters.add(SocketCounter::TxStalls, 1);
                "no frame comes back from being transmitted"
            }
            Some(Stall::Receive) => {
                nic.counters.add(SocketCounter::RxStalls, 1);
                "the kernel finds no frame to receive into"
            }
            None if failed => "its socket has failed",
            None => return Ok(()),
        };
        let uplink = &nic.config.interface;
        // Asked anew: it may have gone down just now.
        let Ok(Some(link)) = links.by_index(nic.status().interface.index) else { return Ok(()) };
        tracing::error!(
            uplink,
            queue,
            what,
            frames = progress.transmitting,
            "a queue stands still: the uplink is closed and opened again"
        );
        if !failed {
            self.distrust_zero_copy(nic);
        }
        self.close(registry, nic)?;
        self.open(registry, nic, &link)
    }

    /// A zero-copy socket has stood still.
    fn distrust_zero_copy(&mut self, nic: &Nic) {
        if nic.status().socket_mode != SocketMode::ZeroCopy || nic.wish() != ModeWish::Auto {
            return;
        }
        self.zero_copy.stalled(Instant::now());
        if self.zero_copy.is_lost() {
            tracing::error!(
                uplink = nic.config.interface,
                "zero-copy stood still three times in ten minutes: copy mode from now on"
            );
        }
    }
}

/// The host is reached by another address: by that and no other, whichever a port has.
fn change_mac(registry: &Registry, nic: &Nic, (was, now): ([u8; 6], [u8; 6])) {
    let (uplink, was, now) = (&nic.config.interface, MacAddress(was), MacAddress(now));
    tracing::info!(uplink, %now, %was, "the uplink's MAC was changed");
    if let Err(error) = registry.redirect(nic) {
        tracing::error!(uplink, error = chain(&error), "the ports' addresses are not in force");
    }
}
