//! Ports of the last run: restored at a start, refused while they cannot be served, and retried.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::PortConfig;
use crate::daemon::problems::HostProblem;
use crate::report::chain;

use super::listen::{Origin, is_permanent};
use super::port::{Ending, Port, RefusedPort};
use super::port_error::PortError;
use super::port_link::PortLink;
use super::registry::Registry;

impl Registry {
    /// Make a port again that may have existed in the last run, with the interface that it had. If
    /// it cannot have it, or cannot be served, it is refused: kept and listed.
    ///
    /// # Errors
    /// [`PortError`], for a port of the configuration that is refused for another reason than its
    /// interface.
    pub fn restore(&self, config: PortConfig, origin: Origin) -> Result<(), PortError> {
        let mut ports = self.ports();
        if ports.contains_key(&config.name) {
            let port = config.name;
            tracing::error!(port, "in the configuration file now, as which it is served");
            return Ok(());
        }
        let permanent = is_permanent(&origin);
        let bound = self.recorded(&config.name);
        let kept = config.clone();
        match self.serve_port(&mut ports, config, origin, bound.as_ref()) {
            Err(error) => {
                let (reason, may_pass) = (chain(&error), error.may_pass());
                let config = kept;
                self.refuse(RefusedPort { config, bound, reason, permanent, may_pass });
                let told = !permanent || matches!(error, PortError::Binding(_));
                if told { Ok(()) } else { Err(error) }
            }
            Ok(()) => Ok(()),
        }
    }

    /// Serve the refused ports whose obstacle has passed.
    pub fn serve_refused(&self) {
        let may_pass = |port: &&RefusedPort| port.may_pass;
        let names: Vec<String> =
            self.refused().values().filter(may_pass).map(|port| port.config.name.clone()).collect();
        for name in names {
            let Ok(mut ports) = self.change() else { return };
            // A port that fails is listed with the reason.
            let _ = self.try_again(&mut ports, &name);
        }
    }

    /// Stop serving a port, since its socket's name cannot be had.
    pub fn turn_away(&self, name: &str, error: &PortError) {
        let ending = self.ports().get_mut(name).map(Port::end);
        ending.into_iter().for_each(Ending::wait);
        let mut ports = self.ports();
        let Some(Port { config, bound, permanent, .. }) = ports.get(name) else { return };
        let (reason, may_pass) = (chain(error), error.may_pass());
        let (config, bound, permanent) = (config.clone(), Some(bound.clone()), *permanent);
        self.take_port(&mut ports, name);
        self.refuse(RefusedPort { config, bound, reason, permanent, may_pass });
    }

    /// Report the ports whose ring positions no other process would find: after a crash nobody
    /// knows the positions of their guests' rings.
    pub fn look_at_positions(&self) {
        let places: Vec<_> = self
            .ports()
            .iter()
            .filter_map(|(name, port)| {
                Some((name.clone(), self.journals.path(name)?, port.link.clone()))
            })
            .collect();
        // A file system may take its time; the ports must not be locked meanwhile.
        let is_homeless = |(_, path, link): &(_, PathBuf, Arc<PortLink>)| {
            link.journals().is_some_and(|journals| !journals.is_at(path))
        };
        let homeless: Vec<String> =
            places.into_iter().filter(is_homeless).map(|(name, ..)| name).collect();
        let told = (!homeless.is_empty()).then(|| {
            format!(
                "ports {}: their ring positions are not in {}/rings, and a crash would cut their \
                 guests off; make room, then `isonic upgrade`",
                homeless.join(", "),
                self.journals.directory().display()
            )
        });
        self.problems.set(HostProblem::RingPositions, told);
    }
}
