//! Rings start when all is said, in whatever order a front-end says it, and stop with an answer
//! that is true.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use isonic::device::features::{FeatureSet, MRG_RXBUF, NOTIFY_ON_EMPTY, RING_PACKED, VERSION_1};
use isonic::profile::Profile;
use isonic::test_support::frontend::{
    Frontend, GuestFile, RING_SIZE, RecordingHost, addresses, code, event, pair, profile,
};
use isonic::test_support::log_file::LogFile;
use isonic::vhost_user::{PortBackend, SessionBinding, SessionEnd, serve};
use vhost::vhost_user::{Frontend as CrateFrontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};

fn memory() -> GuestFile {
    GuestFile::new(0x4000_0000, 0x7f00_0000_0000, 0x40_0000)
}

fn connect() -> (Frontend, Arc<RecordingHost>) {
    let host = Arc::new(RecordingHost::default());
    (Frontend::connect(profile(), Arc::clone(&host) as Arc<dyn PortBackend>), host)
}

#[test]
fn the_crates_own_frontend_agrees_with_every_answer() {
    use std::os::fd::AsRawFd;
    let host = Arc::new(RecordingHost::default());
    let (ours, theirs) = UnixStream::pair().unwrap();
    let port_host = Arc::clone(&host) as Arc<dyn PortBackend>;
    let session =
        std::thread::spawn(move || serve(&theirs, Arc::new(profile()), port_host, "isonic-test"));
    let memory = memory();
    let mut frontend = CrateFrontend::from_stream(ours, 4);
    let features = frontend.get_features().unwrap();
    assert_eq!(features, profile().features.0);
    let protocol = frontend.get_protocol_features().unwrap();
    assert_eq!(protocol.bits(), profile().protocol_features.0);
    frontend.set_protocol_features(protocol).unwrap();
    assert_eq!(frontend.get_queue_num().unwrap(), 2);
    frontend.set_owner().unwrap();
    frontend.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_features(features).unwrap();
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: memory.guest,
        memory_size: memory.size,
        userspace_addr: memory.frontend,
        mmap_offset: 0,
        mmap_handle: memory.file.as_raw_fd(),
    };
    frontend.set_mem_table(&[region]).unwrap();
    for index in 0..2 {
        let [desc_table_addr, avail_ring_addr, used_ring_addr] =
            memory.ring(u32::try_from(index).unwrap());
        frontend.set_vring_num(index, 256).unwrap();
        frontend.set_vring_base(index, 0).unwrap();
        let config = VringConfigData {
            queue_max_size: 256,
            queue_size: 256,
            flags: 0,
            desc_table_addr,
            used_ring_addr,
            avail_ring_addr,
            log_addr: None,
        };
        frontend.set_vring_addr(index, &config).unwrap();
    }
    frontend.set_vring_enable(0, true).unwrap();
    assert_eq!(frontend.get_vring_base(1).unwrap(), 0);
    assert_eq!(frontend.get_max_mem_slots().unwrap(), 8);
    let log = LogFile::new(memory.guest + memory.size);
    let region = VhostUserDirtyLogRegion {
        mmap_size: log.file.metadata().unwrap().len(),
        mmap_offset: 0,
        mmap_handle: log.file.as_raw_fd(),
    };
    frontend.set_log_base(0, Some(region)).unwrap();
    frontend.reset_device().unwrap();
    assert!(frontend.set_vring_num(0, 2048).is_err());
    assert_eq!(frontend.get_features().unwrap(), features);
    drop(frontend);
    assert!(matches!(session.join().unwrap(), SessionEnd::Disconnected));
}

#[test]
fn qemus_order_starts_all_rings_and_binds_what_was_agreed() {
    let (frontend, host) = connect();
    let memory = memory();
    frontend.start(&memory, 4);
    assert_eq!(host.indices(), [0, 1, 2, 3]);
    for ring in host.rings().values() {
        assert!(ring.enabled && ring.kick.is_some() && ring.call.is_some());
        assert_eq!(ring.queue.ring().size(), 256);
    }
    let binding = host.binding.lock().unwrap().clone();
    assert_eq!(binding.offered, profile().features);
    assert_eq!(binding.acknowledged, profile().features);
    assert_eq!(binding.protocol_features, profile().protocol_features);
    assert_eq!(binding.ring_sizes, [Some(256); 4]);
    assert_eq!(binding.queue_pairs, 2);
    assert!(matches!(frontend.disconnect(), SessionEnd::Disconnected));
    assert!(host.indices().is_empty());
    assert_eq!(*host.binding.lock().unwrap(), SessionBinding::default());
}

#[test]
fn virtio_users_order_starts_rings_disabled_and_enables_them_last() {
    let (frontend, host) = connect();
    let memory = memory();
    let offered = frontend.number(code::GET_FEATURES).unwrap();
    let protocol = frontend.number(code::GET_PROTOCOL_FEATURES).unwrap();
    frontend.ok(code::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes(), &[]);
    frontend.ok(code::SET_OWNER, &[], &[]);
    for index in 0..2_u64 {
        frontend.ok(code::SET_VRING_CALL, &index.to_ne_bytes(), &[&event()]);
    }
    frontend.ok(code::SET_FEATURES, &offered.to_ne_bytes(), &[]);
    frontend.ok(code::SET_MEM_TABLE, &GuestFile::table(&[&memory]), &[&memory.file]);
    for index in 0..2 {
        frontend.ok(code::SET_VRING_NUM, &pair(index, RING_SIZE), &[]);
        frontend.ok(code::SET_VRING_BASE, &pair(index, 0), &[]);
        frontend.ok(code::SET_VRING_ADDR, &addresses(index, 0, memory.ring(index)), &[]);
        frontend.ok(code::SET_VRING_KICK, &u64::from(index).to_ne_bytes(), &[&event()]);
    }
    assert!(host.rings().values().all(|ring| !ring.enabled && ring.call.is_some()));
    assert_eq!(host.binding.lock().unwrap().queue_pairs, 0);
    for index in 0..2 {
        frontend.ok(code::SET_VRING_ENABLE, &pair(index, 1), &[]);
    }
    assert!(host.rings().values().all(|ring| ring.enabled));
    assert_eq!(host.binding.lock().unwrap().queue_pairs, 1);
}

#[test]
fn a_kick_before_everything_else_starts_the_ring_when_the_rest_has_come() {
    let (frontend, host) = connect();
    let memory = memory();
    let protocol = frontend.number(code::GET_PROTOCOL_FEATURES).unwrap();
    let offered = frontend.number(code::GET_FEATURES).unwrap();
    frontend.ok(code::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes(), &[]);
    // Bit 8: no descriptor, poll.
    frontend.ok(code::SET_VRING_KICK, &0x101_u64.to_ne_bytes(), &[]);
    frontend.ok(code::SET_VRING_ADDR, &addresses(1, 0, memory.ring(1)), &[]);
    frontend.ok(code::SET_VRING_NUM, &pair(1, 64), &[]);
    frontend.ok(code::SET_MEM_TABLE, &GuestFile::table(&[&memory]), &[&memory.file]);
    assert!(host.indices().is_empty());
    frontend.ok(code::SET_FEATURES, &offered.to_ne_bytes(), &[]);
    assert_eq!(host.indices(), [1]);
    assert!(host.rings()[&1].kick.is_none());
    // The other ring's size comes last of all.
    frontend.ok(code::SET_VRING_KICK, &0x100_u64.to_ne_bytes(), &[]);
    frontend.ok(code::SET_VRING_ADDR, &addresses(0, 0, memory.ring(0)), &[]);
    frontend.ok(code::SET_VRING_NUM, &pair(0, 128), &[]);
    assert_eq!(host.indices(), [0, 1]);
    let sizes = host.binding.lock().unwrap().ring_sizes.clone();
    assert_eq!(sizes, [Some(128), Some(64), None, None]);
}

#[test]
fn enable_is_accepted_before_set_features_as_qemu_sends_it() {
    let (frontend, host) = connect();
    let memory = memory();
    let protocol = frontend.number(code::GET_PROTOCOL_FEATURES).unwrap();
    frontend.ok(code::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes(), &[]);
    frontend.ok(code::SET_VRING_ENABLE, &pair(0, 1), &[]);
    let offered = frontend.number(code::GET_FEATURES).unwrap();
    frontend.ok(code::SET_FEATURES, &offered.to_ne_bytes(), &[]);
    frontend.ok(code::SET_MEM_TABLE, &GuestFile::table(&[&memory]), &[&memory.file]);
    frontend.ok(code::SET_VRING_NUM, &pair(0, RING_SIZE), &[]);
    frontend.ok(code::SET_VRING_ADDR, &addresses(0, 0, memory.ring(0)), &[]);
    frontend.ok(code::SET_VRING_KICK, &0_u64.to_ne_bytes(), &[&event()]);
    assert!(host.rings()[&0].enabled);
}

#[test]
fn without_bit_30_rings_are_enabled_at_once() {
    let (frontend, host) = connect();
    let memory = memory();
    frontend.negotiate();
    let features = profile().features.0 & !(1 << 30);
    frontend.ok(code::SET_FEATURES, &features.to_ne_bytes(), &[]);
    frontend.ok(code::SET_MEM_TABLE, &GuestFile::table(&[&memory]), &[&memory.file]);
    frontend.ok(code::SET_VRING_NUM, &pair(0, RING_SIZE), &[]);
    frontend.ok(code::SET_VRING_ADDR, &addresses(0, 0, memory.ring(0)), &[]);
    frontend.ok(code::SET_VRING_KICK, &0_u64.to_ne_bytes(), &[&event()]);
    assert!(host.rings()[&0].enabled);
    frontend.refused(code::SET_VRING_ENABLE, &pair(0, 0), &[]);
    assert!(host.rings()[&0].enabled);
}

#[test]
fn stop_answers_the_position_and_a_restart_goes_on_from_there() {
    let (frontend, host) = connect();
    let memory = memory();
    frontend.start(&memory, 2);
    // The worker's part: 300 entries were served, the memory and the ring say so.
    let stopped = host.take(1).unwrap();
    drop(stopped);
    memory.set_used_index(1, 300);
    // A ring that its host lost answers with the base it had.
    assert_eq!(frontend.stop_ring(1), Some(0));
    frontend.start_ring(&memory, 1);
    assert_eq!(host.rings()[&1].queue.ring().position(), 300);
    assert_eq!(frontend.stop_ring(1), Some(300));
    assert_eq!(host.indices(), [0]);
    assert_eq!(frontend.stop_ring(1), Some(300), "a stopped ring answers the same again");
    frontend.ok(code::SET_VRING_BASE, &pair(1, 77), &[]);
    assert_eq!(frontend.stop_ring(1), Some(77));
}

#[test]
fn a_ring_starts_anew_elsewhere_and_of_another_size_while_the_others_run() {
    for packed in [false, true] {
        let packed = if packed { 1 << RING_PACKED } else { 0 };
        let features = FeatureSet(profile().features.0 | packed);
        let host = Arc::new(RecordingHost::default());
        let port_host = Arc::clone(&host) as Arc<dyn PortBackend>;
        let frontend = Frontend::connect(Profile { features, ..profile() }, port_host);
        let memory = memory();
        frontend.start(&memory, 4);
        host.moves.lock().unwrap().clear();
        for (size, place) in [(64, 8), (512, 9), (16, 1)] {
            frontend.stop_ring(1).unwrap();
            // A packed ring begins again with both wrap counters at 1.
            let base = if packed == 0 { 0 } else { 0x8000_8000 };
            frontend.ok(code::SET_VRING_NUM, &pair(1, size), &[]);
            frontend.ok(code::SET_VRING_BASE, &pair(1, base), &[]);
            frontend.ok(code::SET_VRING_ADDR, &addresses(1, 0, memory.ring(place)), &[]);
            frontend.ok(code::SET_VRING_KICK, &1_u64.to_ne_bytes(), &[&event()]);
            assert_eq!(u32::from(host.rings()[&1].queue.ring().size()), size);
            assert_eq!(host.rings()[&1].queue.ring().position(), base);
            assert!(host.rings()[&1].enabled, "enabled is independent of stopped");
        }
        assert_eq!(*host.moves.lock().unwrap(), [(1, false), (1, true)].repeat(3));
        assert_eq!(host.indices(), [0, 1, 2, 3]);
    }
}

#[test]
fn a_running_ring_is_enabled_in_our_hands_and_keeps_running_for_new_descriptors() {
    let (frontend, host) = connect();
    let memory = memory();
    frontend.start(&memory, 1);
    host.moves.lock().unwrap().clear();
    frontend.ok(code::SET_VRING_CALL, &0x100_u64.to_ne_bytes(), &[]);
    assert!(host.rings()[&0].call.is_none());
    frontend.ok(code::SET_VRING_KICK, &0_u64.to_ne_bytes(), &[&event()]);
    frontend.ok(code::SET_VRING_ERR, &0_u64.to_ne_bytes(), &[&event()]);
    assert!(host.rings()[&0].err.is_some());
    // QEMU does this each time the guest masks an interrupt: nothing may be lost meanwhile.
    assert_eq!(*host.moves.lock().unwrap(), []);
    frontend.ok(code::SET_VRING_ENABLE, &pair(0, 0), &[]);
    assert!(!host.rings()[&0].enabled);
    assert_eq!(*host.moves.lock().unwrap(), [(0, false), (0, true)]);
    // Said again as it is: nothing to do.
    frontend.ok(code::SET_VRING_ENABLE, &pair(0, 0), &[]);
    assert_eq!(host.moves.lock().unwrap().len(), 2);
}

#[test]
fn a_reset_stops_all_rings_and_the_device_can_be_set_up_again() {
    let (frontend, host) = connect();
    let memory = memory();
    frontend.start(&memory, 2);
    frontend.ok(code::RESET_DEVICE, &[], &[]);
    assert!(host.indices().is_empty());
    assert_eq!(host.binding.lock().unwrap().acknowledged.0, 0);
    // The memory and the protocol features stayed: QEMU sends neither again.
    frontend.ok(code::SET_FEATURES, &profile().features.0.to_ne_bytes(), &[]);
    frontend.start_ring(&memory, 0);
    assert_eq!(host.indices(), [0]);
}

#[test]
fn status_is_remembered_and_zero_stops_the_rings() {
    let (frontend, host) = connect();
    let memory = memory();
    frontend.start(&memory, 2);
    frontend.ok(code::SET_STATUS, &0xf_u64.to_ne_bytes(), &[]);
    assert_eq!(frontend.number(code::GET_STATUS), Some(0xf));
    frontend.ok(code::SET_STATUS, &0_u64.to_ne_bytes(), &[]);
    assert_eq!(frontend.number(code::GET_STATUS), Some(0));
    assert!(host.indices().is_empty());
}

#[test]
fn features_ok_is_not_shown_before_features_were_accepted() {
    let (frontend, _host) = connect();
    let protocol = frontend.number(code::GET_PROTOCOL_FEATURES).unwrap();
    frontend.ok(code::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes(), &[]);
    frontend.ok(code::SET_STATUS, &0xb_u64.to_ne_bytes(), &[]);
    assert_eq!(frontend.number(code::GET_STATUS), Some(0x3));
}

#[test]
fn rarp_reaches_the_host_with_the_address_as_sent() {
    let (frontend, host) = connect();
    frontend.negotiate();
    let mac = [0x52, 0x54, 0, 1, 2, 3];
    frontend.ok(code::SEND_RARP, &[&mac[..], &[0, 0]].concat(), &[]);
    assert_eq!(*host.announced.lock().unwrap(), [mac]);
}

#[test]
fn a_message_in_pieces_is_one_message() {
    let (frontend, _host) = connect();
    frontend.negotiate();
    let bytes = [code::NET_SET_MTU, 9, 8, 1500, 0].map(u32::to_ne_bytes).concat();
    for byte in bytes {
        assert!(frontend.send_bytes(&[byte], &[]));
    }
    assert_eq!(frontend.reply(code::NET_SET_MTU), Some(0_u64.to_ne_bytes().to_vec()));
}

#[test]
fn a_transitional_profile_serves_drivers_from_before_virtio_1_and_no_other_does() {
    let modern = profile();
    let transitional =
        Profile { features: FeatureSet(modern.features.0 | 1 << NOTIFY_ON_EMPTY), ..profile() };
    let legacy = transitional.features.0 & !(1 << VERSION_1);
    for (profile, features, header_len) in [
        (&modern, legacy & !(1 << NOTIFY_ON_EMPTY), None),
        (&transitional, legacy, Some(12)),
        (&transitional, legacy & !(1 << MRG_RXBUF), Some(10)),
        (&transitional, transitional.features.0 & !(1 << MRG_RXBUF), Some(12)),
    ] {
        let host = Arc::new(RecordingHost::default());
        let port_host = Arc::clone(&host) as Arc<dyn PortBackend>;
        let frontend = Frontend::connect(profile.clone(), port_host);
        let memory = memory();
        frontend.negotiate();
        let accepted = frontend.accepted(code::SET_FEATURES, &features.to_ne_bytes(), &[]);
        assert_eq!(accepted, header_len.is_some(), "{features:#x} of {:#x}", profile.features.0);
        frontend.ok(code::SET_MEM_TABLE, &GuestFile::table(&[&memory]), &[&memory.file]);
        frontend.start_ring(&memory, 0);
        let served = host.rings().get(&0).map(|ring| ring.kind.header_len);
        assert_eq!(served, header_len, "not by the features before those that were refused");
    }
}

#[test]
fn a_backend_channel_is_kept_and_nothing_is_said_on_it() {
    let (frontend, _host) = connect();
    frontend.negotiate();
    let channel = || {
        let (peer, channel) = UnixStream::pair().unwrap();
        peer.set_nonblocking(true).unwrap();
        frontend.ok(code::SET_BACKEND_REQ_FD, &[], &[&File::from(OwnedFd::from(channel))]);
        peer
    };
    let closed = |mut peer: &UnixStream| {
        peer.set_nonblocking(false).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        peer.read(&mut [0; 1]).is_ok_and(|read| read == 0)
    };
    let silent = |peer: &UnixStream| {
        let mut peer: &UnixStream = peer;
        peer.read(&mut [0; 1]).map_err(|error| error.kind())
    };
    let first = channel();
    assert_eq!(silent(&first), Err(ErrorKind::WouldBlock));
    let second = channel();
    frontend.ok(code::RESET_DEVICE, &[], &[]);
    assert!(closed(&first), "a new one takes its place");
    assert_eq!(silent(&second), Err(ErrorKind::WouldBlock), "it is the connection's");
    frontend.disconnect();
    assert!(closed(&second));
}
