//! A session of one port's socket is gone on with by another's, as another process does it: what it
//! has then, and what the front-end notices, which is nothing.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::bounded;
use isonic::device::features::{FeatureSet, LOG_ALL, MRG_RXBUF};
use isonic::guest_memory::MemoryFiles;
use isonic::profile::Profile;
use isonic::test_support::frontend::{
    Frontend, GuestFile, RecordingHost, addresses, code, event, pair, profile,
};
use isonic::vhost_user::{
    Connection, ContinuedSession, MemoryPolicy, OutageTimes, PausedSession, PortBackend,
    PortSocket, SessionBinding, SocketSource, WorkerRing, serve_connection,
};

fn with_log() -> Profile {
    let features = FeatureSet(profile().features.0 | 1 << LOG_ALL);
    Profile { features, ..profile() }
}

fn serving(
    profile: Profile,
    memory: MemoryPolicy,
) -> (Arc<RecordingHost>, impl Fn(&mut Connection) -> isonic::vhost_user::SessionEnd) {
    let mut host = RecordingHost::default();
    host.memory = memory;
    let host = Arc::new(host);
    let (profile, port_host) = (Arc::new(profile), Arc::clone(&host) as Arc<dyn PortBackend>);
    let serve = move |connection: &mut Connection| {
        serve_connection(connection, Arc::clone(&profile), Arc::clone(&port_host), "isonic-test")
    };
    (host, serve)
}

fn memory() -> GuestFile {
    GuestFile::new(0x4000_0000, 0x7f00_0000_0000, 0x10_0000)
}

/// A front-end with two running rings, and who serves it.
fn running(profile: Profile, memory: &GuestFile) -> (Frontend, PortSocket, Arc<RecordingHost>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let any = MemoryPolicy { files: MemoryFiles::Any, ..MemoryPolicy::default() };
    let (host, serve) = serving(profile, any);
    let socket = PortSocket::start(SocketSource::Stream(theirs), "isonic-test", serve).unwrap();
    let frontend = Frontend::over(ours);
    frontend.start(memory, 2);
    (frontend, socket, host)
}

/// Who is to go on.
fn successor(profile: Profile) -> (PortSocket, Arc<RecordingHost>) {
    successor_with(profile, MemoryPolicy::default())
}

/// The same, of a process that lets guests have this memory.
fn successor_with(profile: Profile, memory: MemoryPolicy) -> (PortSocket, Arc<RecordingHost>) {
    let (host, serve) = serving(profile, memory);
    let source = SocketSource::Inherited;
    (PortSocket::start_paused(source, "isonic-test", serve).unwrap(), host)
}

/// What another process gets of a session whose rings are with the host.
fn left(session: PausedSession, host: &RecordingHost) -> ContinuedSession {
    let PausedSession { stream, mut record } = session;
    for (&index, ring) in host.rings().iter() {
        let event = |event: &Option<isonic::virtqueue::EventFd>| -> Option<OwnedFd> {
            event.as_ref().map(|event| event.duplicate().unwrap())
        };
        let events = [event(&ring.kick), event(&ring.call), event(&ring.err)];
        let position = ring.queue.ring().position();
        record.messages.extend(
            WorkerRing { index, position, broken: ring.broken.is_some(), events }.messages(),
        );
    }
    ContinuedSession { stream: UnixStream::from(stream), record }
}

#[test]
fn another_process_has_what_was_said_and_the_front_end_notices_nothing() {
    let memory = memory();
    let (frontend, mut before, host) = running(with_log(), &memory);
    // A ring that is disabled, one that has only begun to be set up, and a log with a mark in it.
    frontend.ok(code::SET_VRING_ENABLE, &pair(1, 0), &[]);
    frontend.ok(code::SET_VRING_NUM, &pair(2, 128), &[]);
    frontend.ok(code::SET_VRING_CALL, &2_u64.to_ne_bytes(), &[&event()]);
    frontend.ok(code::SET_STATUS, &0xf_u64.to_ne_bytes(), &[]);
    let log = GuestFile::new(0, 0, 0x10000);
    let body = [0x10000_u64, 0].map(u64::to_ne_bytes).concat();
    assert!(frontend.send(code::SET_LOG_BASE, 1, &body, &[&log.file]));
    assert!(frontend.reply(code::SET_LOG_BASE).is_some());
    let marks = marks(&log.file);

    let session = left(rest(&mut before).expect("a session between two messages"), &host);
    let (mut after, next) = successor(with_log());
    let (commit, ours) = bounded(0);
    after.inherit(Some(session), ours).recv().expect("it is followed");
    assert_eq!(next.indices(), [0, 1]);
    // What it took to start the rings is the other's.
    let bound =
        SessionBinding { took: OutageTimes::default(), ..host.binding.lock().unwrap().clone() };
    assert_eq!(*next.binding.lock().unwrap(), bound);
    let enabled = |host: &RecordingHost| [0, 1].map(|ring| host.rings()[&ring].enabled);
    assert_eq!((enabled(&next), enabled(&host)), ([true, false], [true, false]));
    assert_eq!(self::marks(&log.file), marks, "nothing that was not written is marked");

    // What is said meanwhile waits for whoever goes on.
    assert!(frontend.send(code::GET_STATUS, 1, &[], &[]));
    std::mem::forget(before);
    drop(commit);
    assert_eq!(frontend.reply(code::GET_STATUS), Some(0xf_u64.to_ne_bytes().to_vec()));
    // The ring that was begun with is set up to its end.
    frontend.ok(code::SET_VRING_ADDR, &addresses(2, 0, memory.ring(2)), &[]);
    frontend.ok(code::SET_VRING_KICK, &2_u64.to_ne_bytes(), &[&event()]);
    assert_eq!(next.rings()[&2].queue.ring().size(), 128);
    assert!(next.rings()[&2].call.is_some());
    assert_eq!(frontend.stop_ring(0), Some(0));
}

/// What the front-end names if all processes die, and no position that it was never told.
#[test]
fn the_base_that_the_front_end_knows_goes_on_to_every_process_after() {
    let memory = memory();
    memory.set_used_index(0, 7);
    let (frontend, before, mut host) = running(profile(), &memory);
    let mut sockets = vec![before];
    for process in 0..3 {
        let last = sockets.last_mut().expect("a process");
        let session = left(rest(last).expect("a session between two messages"), &host);
        assert_eq!(session.record.named[..3], [Some(0), Some(0), None], "process {process}");
        let (mut after, next) = successor(profile());
        let (commit, ours) = bounded(0);
        after.inherit(Some(session), ours).recv().expect("it is followed");
        drop(commit);
        assert_eq!(next.rings()[&0].queue.ring().position() & 0xffff, 7);
        host = next;
        sockets.push(after);
    }
    assert_eq!(frontend.stop_ring(0), Some(7));
    let session = rest(sockets.last_mut().expect("a process")).expect("it stands still");
    assert_eq!(session.record.named[..2], [None, Some(0)], "it was told");
    sockets.into_iter().for_each(std::mem::forget);
}

fn rest(socket: &mut PortSocket) -> Option<PausedSession> {
    socket.ask_to_pause(Instant::now() + Duration::from_millis(500)).wait()
}

fn marks(log: &File) -> Vec<u8> {
    let mut bytes = vec![0; 0x10000];
    log.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn what_does_not_hold_there_is_not_followed_and_the_first_goes_on_if_the_other_does_not() {
    let memory = memory();
    let (frontend, mut before, host) = running(profile(), &memory);
    let session = left(rest(&mut before).expect("a session between two messages"), &host);
    let narrower = FeatureSet(profile().features.0 & !(1 << MRG_RXBUF));
    let (mut after, next) = successor(Profile { features: narrower, ..profile() });
    let (_never, ours) = bounded(0);
    assert!(after.inherit(Some(session), ours).recv().is_err(), "a feature it does not offer");
    assert!(next.indices().is_empty());
    // As if the other process had ended.
    std::mem::forget(after);
    before.resume();
    assert_eq!(host.indices(), [0, 1]);
    assert_eq!(frontend.stop_ring(1), Some(0));
    before.stop();
}

#[test]
fn a_guest_that_runs_keeps_memory_that_a_new_session_would_be_refused() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("isonic-kept-memory");
    let mut opening = File::options();
    let file = opening.read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(MemoryFiles::Shared.check(&file).is_err(), "the target directory is on a disk");
    file.set_len(0x10_0000).unwrap();
    let memory = GuestFile { file, ..memory() };
    let (frontend, mut before, host) = running(profile(), &memory);
    let session = left(rest(&mut before).expect("a session between two messages"), &host);
    // Less than it has, of other files.
    let less = MemoryPolicy { max: 0x8_0000, ..MemoryPolicy::default() };
    let (mut after, next) = successor_with(profile(), less);
    let (commit, ours) = bounded(0);
    assert!(after.inherit(Some(session), ours).recv().is_ok(), "it is followed");
    drop(commit);
    std::mem::forget(before);
    assert_eq!(next.indices(), [0, 1]);
    // The same again, as front-ends send it; and no more than that.
    frontend.ok(code::SET_MEM_TABLE, &GuestFile::table(&[&memory]), &[&memory.file]);
    let more = GuestFile::new(0x8000_0000, 0x7e00_0000_0000, 0x10_0000);
    frontend.refused(code::ADD_MEM_REG, &more.single(), &[&more.file]);
    after.stop();
}

#[test]
fn a_session_in_the_middle_of_a_message_does_not_stand_still_and_is_cut() {
    let memory = memory();
    let (frontend, mut before, host) = running(profile(), &memory);
    let message = [code::GET_FEATURES, 1, 0].map(u32::to_ne_bytes).concat();
    assert!(frontend.send_bytes(&message[..5], &[]));
    // Until it is read, whoever goes on can read it.
    while rest(&mut before).is_some() {
        before.resume();
    }
    // Whatever becomes of the other process: nobody has half a session.
    assert_eq!(frontend.number(code::GET_FEATURES), None, "its connection has ended");
    before.resume();
    before.stop();
    assert!(host.indices().is_empty(), "its rings are with nobody");
}
