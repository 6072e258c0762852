//! Sessions that this process ends by itself: on an uplink whose link is down, of a guest whose
//! memory is gone, and all on stopping.

use crate::daemon::nic::PortsOfNics;
use crate::datapath::{PortId, RingReport};
use crate::report::chain;
use crate::virtqueue::Fault;

use super::listen::{Origin, open_socket};
use super::port::{Ending, Port};
use super::port_error::PortError;
use super::registry::{PortMap, Registry};

impl PortsOfNics for Registry {
    /// The front-ends of its ports have no backend while the link is down.
    fn show_link(&self, uplink: &str, up: bool) {
        let of_nic = |port: &&mut Port| port.pending.is_none() && port.config.uplink == uplink;
        if !up {
            let endings: Vec<_> =
                self.ports().values_mut().filter(of_nic).filter_map(Port::disconnect).collect();
            // All sessions end concurrently.
            endings.into_iter().for_each(Ending::wait);
            return;
        }
        let stopped = |port: &&mut Port| port.socket.is_stopped();
        // With the ports locked, as when a port is made: no other port takes the socket's name.
        for port in self.ports().values_mut().filter(of_nic).filter(stopped) {
            if let Err(error) = self.connect(port) {
                let (port, reason) = (&port.config.name, chain(&error));
                tracing::error!(port, reason, "the port takes no connections");
            }
        }
    }

    fn record_uplinks(&self) {
        if let Err(error) = self.record() {
            tracing::error!(error = chain(&error), "what the uplinks are like is not kept");
        }
    }
}

impl Registry {
    /// Have a disconnected port take connections again.
    fn connect(&self, port: &mut Port) -> Result<(), PortError> {
        if port.inherited {
            return Ok(());
        }
        let (source, file) = open_socket(&port.config, Origin::State)?;
        let Port { config, profile, link, .. } = &*port;
        port.socket = self.start(source, config, profile, link).map_err(PortError::Thread)?;
        port.file = file;
        Ok(())
    }

    /// End the session of a port whose front-end took its memory away.
    pub fn end_session_without_memory(&self, lost: PortId) {
        let ports = self.ports();
        if self.ownership.is_over() {
            // The connection is another process's as well, which detects this by itself.
            return;
        }
        for port in ports.values().filter(|port| port.id == lost) {
            // The report may come late, for an earlier session. The rings of the present session
            // show that.
            let rings = self.workers.inspect(port.id).unwrap_or_default();
            let gone = |ring: &RingReport| ring.broken == Some(Fault::MemoryGone);
            if rings.iter().any(|(_, ring)| gone(ring)) {
                tracing::error!(port = port.config.name, "memory is gone: session ended");
                port.link.end_session();
            }
        }
    }

    /// End all sessions and forget all ports; the state file keeps them.
    pub fn stop(&self) {
        let endings: Vec<_> = self.ports().values_mut().map(Port::end).collect();
        // All sessions end concurrently.
        endings.into_iter().for_each(Ending::wait);
        let ports = std::mem::take(&mut *self.ports());
        self.settle_journals(&ports);
    }

    fn settle_journals(&self, ports: &PortMap) {
        if self.is_successor() {
            // This process has taken nothing over, and the files are the predecessor's.
            return;
        }
        for port in ports.values() {
            if let Some(journals) = port.link.journals() {
                self.journals.settle(&port.config, journals);
            }
        }
    }
}
