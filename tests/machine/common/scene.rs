//! Two hosts with the same port, and a guest that moves between them.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::{
    BRIDGE, Bed, Configuration, Daemon, Flows, Guest, GuestSpec, Migration, NIC, Outage, PortSpec,
    Report, kernel_drops, wait_for, wait_reachable,
};

/// The port on both hosts.
const PORT: &str = "vm1";
/// Between two messages of a flow.
const PAUSE: Duration = Duration::from_millis(2);
const FLOWS: u16 = 4;
/// Messages under way to a guest when it was stopped may be lost with the outage. Seconds, many
/// times the delay of a message.
const UNDER_WAY: f64 = 0.5;

/// See the module's header. The guest goes before the daemons, and those before the beds.
#[derive(Debug)]
pub struct Scene<'beds> {
    /// The guest.
    pub guest: Guest,
    /// Number of the host that it is on.
    pub at: usize,
    /// Each host's isonic.
    pub daemons: [Daemon<'beds>; 2],
    beds: &'beds [Bed; 2],
}

/// Migrations, and isonic's own share of each, for stopping and for starting, µs.
pub type Moves = Vec<(Migration, [u64; 2])>;

impl<'beds> Scene<'beds> {
    /// A guest with so many queue pairs on the first host, whose port has this profile on both.
    pub fn new(beds: &'beds [Bed; 2], profile: &str, queue_pairs: u32) -> Self {
        let port = PortSpec::switch(NIC, 1).with_profile(profile);
        let spec = GuestSpec { queue_pairs, ..GuestSpec::new(&port, &beds[0].uplinks[0], 1) };
        let configure = |bed| Configuration::new(bed, vec![port.clone()]);
        Self::with(beds, &beds.each_ref().map(configure), &spec)
    }

    /// This guest on the first of two hosts with these configurations.
    pub fn with(
        beds: &'beds [Bed; 2],
        configurations: &[Configuration; 2],
        spec: &GuestSpec,
    ) -> Self {
        let [here, there] = configurations;
        let daemons = [Daemon::start(&beds[0], here), Daemon::start(&beds[1], there)];
        let guest = Guest::boot(&beds[0], spec);
        wait_reachable(&beds[0].wire, &spec.address, 20);
        Self { guest, at: 0, daemons, beds }
    }

    /// The host that the guest is on.
    pub fn bed(&self) -> &'beds Bed {
        &self.beds[self.at]
    }

    /// The other one.
    pub fn other(&self) -> &'beds Bed {
        &self.beds[1 - self.at]
    }

    /// Flows of messages both ways between the wire and the guest, 2000 a second each way.
    pub fn flows(&mut self) -> Flows {
        Flows::start(self.bed(), &mut self.guest, FLOWS, PAUSE)
    }

    /// The guest moves to the other host, which is the same to it, and so to its isonic.
    pub fn migrate(&mut self) -> (Migration, [u64; 2]) {
        let there = Guest::await_arrival(self.other(), &self.guest.spec);
        self.migrate_into(there)
    }

    fn migrate_into(&mut self, mut there: Guest) -> (Migration, [u64; 2]) {
        let fingerprint = self.binding()["fingerprint"].take();
        self.guest.begin(&mut there, self.other());
        let done = self.arrive(there);
        assert_eq!(self.binding()["fingerprint"], fingerprint);
        done
    }

    /// The end of a migration that was begun.
    pub fn arrive(&mut self, there: Guest) -> (Migration, [u64; 2]) {
        let migration = self.guest.arrive(there);
        let stopped = stop_of(&self.daemons[self.at].log());
        self.at = 1 - self.at;
        let started = self.binding()["start_microseconds"].as_u64();
        (migration, [stopped, started.expect("rings that were started")])
    }

    /// Saves the guest to a file, and restores it on the other host.
    pub fn save_and_restore(&mut self, file: &Path) {
        let (spec, fingerprint) = (self.guest.spec.clone(), self.binding()["fingerprint"].take());
        self.guest.save(file);
        self.guest.kill();
        self.at = 1 - self.at;
        self.guest = Guest::restore(self.bed(), &spec, file);
        assert_eq!(self.binding()["fingerprint"], fingerprint);
    }

    /// The session that is agreed on with the guest's QEMU.
    pub fn binding(&self) -> Value {
        self.daemons[self.at].json(&["port", "show", PORT])["binding"].take()
    }

    /// The number of the host to which the bridge of the wire sends the guest's frames.
    pub fn place_on_the_wire(&self) -> Option<usize> {
        let known = self.bed().wire.run(&["bridge", "fdb", "show", "br", BRIDGE]);
        let entry = known.lines().find(|line| line.starts_with(&self.guest.spec.port.mac))?;
        let dev = entry.split(' ').skip_while(|word| *word != "dev").nth(1)?;
        self.beds.iter().position(|bed| bed.uplinks[0].peer == dev)
    }

    /// Asserts the rules that all flows keep, whatever happened. Nothing is damaged or comes twice.
    /// Nothing that the guest has sent is lost or out of order. Messages to the guest are lost only
    /// while it stood still, or for lack of room in isonic or the guest. Losses for lack of room
    /// are counted: an emulated guest may be too slow. Prints the totals.
    pub fn assert_flows(&self, report: &Report, outages: &[Outage]) {
        report.assert_exact();
        let (lost, no_room) = (report.lost_outside(outages), self.no_room());
        println!(
            "{} messages; lost to the guest {}, of them outside of outages {} ({no_room} found no \
             room), late {}; lost from it {}",
            report.sent(),
            report.lost_to_guest(),
            lost.len(),
            report.late_to_guest(),
            report.lost_from_guest(),
        );
        let what = format!("{lost:?}; {no_room} found no room; {}", kernel_drops(&self.bed().wire));
        assert!(u64::try_from(lost.len()).expect("a few") <= no_room, "{what}");
        let from_guest = (report.lost_from_guest(), report.late_from_guest());
        let drops = || kernel_drops(&self.bed().wire);
        assert_eq!(from_guest, (0, 0), "{:?}; {}", report.from_guest, drops());
    }

    fn no_room(&self) -> u64 {
        let count = |daemon: &Daemon<'_>| {
            let stats = daemon.json(&["stats"]);
            let of_port = &stats["ports"][PORT]["to_guest_dropped_no_buffers"];
            let of_nic = &stats["uplinks"][NIC]["kernel_rx_dropped"];
            let ring_full = &stats["uplinks"][NIC]["kernel_rx_ring_full"];
            [of_port, of_nic, ring_full].into_iter().filter_map(Value::as_u64).sum::<u64>()
        };
        self.daemons.iter().map(count).sum()
    }

    /// No ring was broken, no frame of an uplink is lost, on either host.
    pub fn assert_sound(&self) {
        for daemon in &self.daemons {
            assert_eq!(daemon.port_counter(PORT, "ring_faults"), 0);
            daemon.frames();
        }
    }

    /// Waits until the guest answers; returns its view of its interface.
    pub fn view(&mut self) -> String {
        wait_reachable(&self.bed().wire, &self.guest.spec.address, 20);
        self.guest.view()
    }

    /// Waits until a port's binding on the guest's host has this feature, or has not.
    pub fn wait_acknowledged(&self, feature: &str, wanted: bool) {
        let daemon = &self.daemons[self.at];
        wait_for(&format!("{feature} is acknowledged: {wanted}"), 20, || {
            let port = daemon.json(&["port", "show", PORT]);
            let names = &port["binding"]["acknowledged"]["names"];
            let names = names.as_array().expect("names");
            names.iter().any(|name| name == feature) == wanted
        });
    }
}

impl Outage {
    /// The outage of a migration: until a message came from the guest at its new place.
    pub fn of(migration: &Migration, report: &Report) -> Self {
        Self::between(migration.stopped, migration.resumed, report)
    }

    /// The outage of a guest that had stopped at the first time and could resume at the second.
    pub fn between(stopped: f64, resumed: f64, report: &Report) -> Self {
        Self { from: stopped - UNDER_WAY, until: report.heard_after(resumed) }
    }
}

/// The time that stopping the rings took last, by isonic's log, µs.
fn stop_of(log: &str) -> u64 {
    let line = log.lines().rfind(|line| line.contains("rings stopped")).expect("rings stopped");
    let value = line.split("us=").nth(1).and_then(|rest| rest.split_whitespace().next());
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}
