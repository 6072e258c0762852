//! A service manager as its protocol is documented (sd_notify(3)). It hears a service on a datagram
//! socket, and keeps the descriptors that it is asked to keep.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::Bed;

/// See the module's header.
#[derive(Debug)]
pub struct ServiceManager {
    socket: UnixDatagram,
    path: PathBuf,
    /// By name.
    pub kept: BTreeMap<String, OwnedFd>,
    /// The service's messages, line by line.
    pub said: Vec<String>,
}

impl ServiceManager {
    /// A service manager that has heard nothing yet.
    pub fn new(bed: &Bed) -> Self {
        let path = bed.path("notify");
        let socket = UnixDatagram::bind(&path).expect("notification socket");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        Self { socket, path, kept: BTreeMap::new(), said: Vec::new() }
    }

    /// The environment variables of a service.
    pub fn environment(&self) -> [String; 2] {
        [format!("NOTIFY_SOCKET={}", self.path.display()), "FDSTORE=1".to_owned()]
    }

    /// Hear messages until one says `line`.
    pub fn hear(&mut self, line: &str) {
        while !self.hear_one().iter().any(|said| said == line) {}
    }

    fn hear_one(&mut self) -> Vec<String> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 4096];
        let mut buffer = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(self.socket.as_fd(), &mut buffer, &mut control, flags);
        let length =
            received.unwrap_or_else(|error| panic!("{error}; so far {:?}", self.said)).bytes;
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let text = std::str::from_utf8(&bytes[..length]).expect("text");
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let name = lines.iter().find_map(|line| line.strip_prefix("FDNAME="));
        if let Some(name) = name {
            if lines.iter().any(|line| line == "FDSTORE=1") {
                assert_eq!(descriptors.len(), 1, "FileDescriptorStoreMax=1");
                // Without FDPOLL=0, a manager drops the descriptor when its other side ends.
                assert!(lines.iter().any(|line| line == "FDPOLL=0"), "{lines:?}");
                self.kept.insert(name.to_owned(), descriptors.remove(0));
            }
            if lines.iter().any(|line| line == "FDSTOREREMOVE=1") {
                self.kept.remove(name);
            }
        }
        // A service's barrier waits until the manager has closed its descriptor.
        drop(descriptors);
        self.said.extend(lines.iter().cloned());
        lines
    }
}
