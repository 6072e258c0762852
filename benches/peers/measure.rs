//! One run: a backend, a front-end, a wire; each frame length in turn, and the accounts.

use std::time::Instant;

use crate::backend::{Backend, Drops, Peer, mac, socket};
use crate::case::{Case, Scenario};
use crate::client::Client;
use crate::common::{Bed, NIC};
use crate::frontend::Frontend;
use crate::sample::{Sample, rate};
use crate::settings::Settings;
use crate::wire::Wire;

/// Bytes of an idle VM's frames, of which it sends none.
const IDLE_LEN: usize = 64;

/// A case with a peer, once: a sample for each frame length.
///
/// # Panics
/// If packets are unaccounted for.
pub fn run(case: &Case, peer: Peer) -> Vec<(usize, Sample)> {
    run_lengths(case, peer, Settings::get().frames())
}

/// A case with a peer, once, for these frame lengths.
pub fn run_lengths(case: &Case, peer: Peer, lengths: &[usize]) -> Vec<(usize, Sample)> {
    let settings = Settings::get();
    let bed = Bed::new(1, 1);
    let wire = case.far_end().map(|far_end| Wire::attach(&bed, far_end));
    let mut backend = Backend::start(peer, &bed, case);
    let _idle = connect_idle(&bed, case);
    let mut frontend = Frontend::start(&bed, case);
    backend.wait_running();
    let mut samples = Vec::new();
    for &len in lengths {
        frontend.send(len);
        std::thread::sleep(settings.warm_up());
        samples.push((len, sample(case, &mut backend, &mut frontend, wire.as_ref())));
    }
    let ends = frontend.drain();
    account(case, (&bed, &mut backend), &mut frontend, (wire.as_ref(), ends));
    frontend.quit();
    samples
}

/// Connects the idle VMs of a case.
pub fn connect_idle(bed: &Bed, case: &Case) -> Vec<Client> {
    let ports = case.ports()..case.ports() + case.idle;
    ports.map(|port| Client::connect(&bed.path(&socket(port)), &mac(port), IDLE_LEN)).collect()
}

fn sample(
    case: &Case,
    backend: &mut Backend<'_>,
    frontend: &mut Frontend,
    wire: Option<&Wire>,
) -> Sample {
    let before = backend.reading();
    // testpmd counts from here on, by its own clock.
    frontend.ports();
    let on_wire = wire.map(|wire| (wire.frames(), Instant::now()));
    std::thread::sleep(Settings::get().time());
    let packets = match (case.scenario, wire, on_wire) {
        (Scenario::GuestToWire, Some(wire), Some((frames, since))) => {
            rate(wire.frames() - frames, since.elapsed())
        }
        _ => {
            let ports = frontend.ports();
            #[allow(clippy::cast_precision_loss, reason = "packets of a second")]
            let rates = ports.iter().take(case.ports()).map(|port| port.get("Rx-pps") as f64);
            rates.sum()
        }
    };
    let cost = backend.reading().zip(before).map(|(after, before)| after.since(&before));
    Sample { packets, cost }
}

/// Every packet that was sent was received, or is dropped for a reason that somebody counted.
fn account(
    case: &Case,
    (bed, backend): (&Bed, &mut Backend<'_>),
    frontend: &mut Frontend,
    (wire, (from_guests, to_guests)): (Option<&Wire>, (u64, u64)),
) {
    let (sent, received) = match (case.scenario, wire) {
        (Scenario::GuestToWire, Some(wire)) => (from_guests, wire.frames()),
        // Packets from guests die in the far end's program here, and are no part of the account.
        (Scenario::WireToGuest, _) => (frontend.sent_from_far_end(), to_guests),
        _ => (from_guests, to_guests),
    };
    let mut drops = backend.drops();
    drops.extend(lost_by_the_wire(bed));
    let dropped: u64 = drops.values().sum();
    let missing = sent.checked_sub(received + dropped);
    let kept = backend.may_keep();
    assert!(
        missing.is_some_and(|missing| missing <= kept),
        "{}: of {sent} packets {received} were received, and dropped were {drops:?}",
        case.name()
    );
    assert!(received > 0, "{}: no packet arrived", case.name());
}

/// The losses that the veth pair counts: on its way out, and on its way to us.
fn lost_by_the_wire(bed: &Bed) -> Drops {
    let lost = ["tx_dropped", "rx_dropped"].map(|name| {
        let count = bed.host.run(&["cat", &format!("/sys/class/net/{NIC}/statistics/{name}")]);
        (format!("wire_{name}"), count.trim().parse().expect("a number"))
    });
    Drops::from(lost)
}
