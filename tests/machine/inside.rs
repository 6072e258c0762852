//! No tests: what runs inside a guest of [`InnerHost`](crate::common::InnerHost), where a copy of
//! this program starts them by name, as libtest starts a test (`program` in
//! `common/inner_host.rs`). `scripts/test` leaves them out.

use std::time::Duration;

use crate::common::{PacketSocket, Passage, passage, variable, xsk_facts};
use isonic::test_support::echo_vm::EchoVm;
use isonic::test_support::rig_guest;
use isonic::test_support::vm::Vm;

/// The MAC of the VM on this NIC.
pub fn mac(nic: usize) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, u8::try_from(nic + 1).expect("a few")]
}

#[test]
#[ignore = "no test: the VM that runs inside"]
fn echo_vm() {
    let nic = variable("ISONIC_VM") as usize;
    let mut vm = EchoVm::start(format!("/run/isonic/vm{nic}.sock").as_ref(), mac(nic));
    loop {
        vm.turn();
        std::thread::yield_now();
    }
}

#[test]
#[ignore = "no test: tells the sockets of a process that runs inside"]
fn sockets_of_isonic() {
    let facts = xsk_facts(variable("ISONIC_PROCESS"));
    println!("sockets: {}", serde_json::to_string(&facts).expect("JSON"));
}

#[test]
#[ignore = "no test: the VM and the wire that run inside"]
fn tell_passage() {
    let wire = std::env::var("ISONIC_WIRE").expect("this runs in a guest");
    let mut wire = PacketSocket::here(&wire, Duration::from_millis(100));
    let mut vm = Vm::connect("/run/isonic/vm0.sock".as_ref(), 1);
    let passage: Passage = passage(&mut wire, &mut vm, rig_guest::mac(1));
    println!("passage: {}", serde_json::to_string(&passage).expect("JSON"));
}
