//! The reference device as a peer: two of it in a process of their own. A loop between them carries
//! each one's packets to the other.

use std::path::PathBuf;

use isonic::reference::ReferenceDevice;
use isonic::test_support::frontend::profile;
use vhost::vhost_user::Listener;

use crate::common::{Bed, Process};
use crate::pinning;

/// Starts the process, which makes these sockets.
pub fn start(bed: &Bed, sockets: [PathBuf; 2]) -> Process {
    let program = std::env::current_exe().expect("this program");
    let mut command_line = vec![program, "--serve-reference".into()];
    command_line.extend(sockets);
    let command_line: Vec<String> =
        command_line.iter().map(|word| word.display().to_string()).collect();
    Process::start("reference", bed.host.name(), &command_line, &bed.path("reference.log"))
}

/// The work of that process, until it is killed.
pub fn serve(sockets: &[PathBuf]) -> ! {
    pinning::pin();
    let listeners: Vec<Listener> = sockets
        .iter()
        .map(|socket| Listener::new(socket, true).expect("a socket to listen on"))
        .collect();
    let serve = |mut listener| ReferenceDevice::serve(profile(), &mut listener);
    let devices: Vec<_> = listeners.into_iter().map(serve).collect();
    let [one, other] = [0, 1].map(|device: usize| devices[device].as_ref().expect("a device"));
    loop {
        let mut moved = 0;
        for (from, to) in [(one, other), (other, one)] {
            for frame in from.wire().departed() {
                to.wire().arrive(&frame);
                moved += 1;
            }
        }
        if moved == 0 {
            // The devices' own threads are on this CPU.
            std::thread::yield_now();
        }
    }
}
