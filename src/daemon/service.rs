//! Answers the API: views of what there is, and ports made and removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::control::api::{
    BindingView, BitsView, Counters, Deleted, Direction, PortState, PortView, ProfileView,
    RingView, SocketKind, Stats, UplinkView, VersionView, WorkerView, XdpMode,
};
use crate::control::{ApiError, ErrorCode, Request, Response, Service};
use crate::datapath::is_from_guest;
use crate::device::mac::MacAddress;
use crate::metrics::sum;
use crate::profile::fingerprint;
use crate::report::chain;
use crate::vhost_user::SessionBinding;
use crate::xdp::{AttachMode, SocketMode};

use super::ports::{Origin, Port, PortError, RefusedPort, Registry};
use super::uplinks::Nic;

/// The daemon as the API sees it.
#[derive(Debug)]
pub struct DaemonService {
    registry: Arc<Registry>,
}

impl Service for DaemonService {
    fn call(&self, request: Request) -> Result<Response, ApiError> {
        let registry = &self.registry;
        match request {
            Request::ListPorts => Ok(Response::Ports(self.ports())),
            Request::ShowPort(name) => self.show_port(&name),
            Request::AddPort(config) => {
                let name = config.name.clone();
                registry.add(config, Origin::Api).map_err(|error| refused(&error))?;
                self.show_port(&name)
            }
            Request::SetProfile(name, change) => {
                registry.set_profile(&name, &change).map_err(|error| refused(&error))?;
                self.show_port(&name)
            }
            Request::DeletePort(name) => {
                registry.remove(&name).map_err(|error| refused(&error))?;
                Ok(Response::Deleted(Deleted { deleted: name }))
            }
            Request::ListUplinks => {
                Ok(Response::Uplinks(registry.nics.iter().map(|nic| self.uplink(nic)).collect()))
            }
            Request::ListProfiles => {
                Ok(Response::Profiles(ProfileView::all(&registry.catalog, &registry.nics.facts())))
            }
            Request::ShowProfile(name) => self.show_profile(&name),
            Request::Stats => Ok(Response::Stats(self.stats())),
            Request::Version => Ok(Response::Version(VersionView::current())),
        }
    }
}

impl DaemonService {
    /// Answer for this registry.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry }
    }

    /// All ports by name, served or not.
    fn ports(&self) -> Vec<PortView> {
        let ports = self.registry.ports();
        let mut views: Vec<PortView> = ports.values().map(|port| self.port(port)).collect();
        views.extend(self.registry.refused().values().map(refused_port));
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }

    fn show_port(&self, name: &str) -> Result<Response, ApiError> {
        let ports = self.registry.ports();
        let served = ports.get(name).map(|port| self.port(port));
        let view = served.or_else(|| self.registry.refused().get(name).map(refused_port));
        match view {
            Some(view) => Ok(Response::Port(Box::new(view))),
            None => Err(refused(&PortError::NotFound(name.to_owned()))),
        }
    }

    fn show_profile(&self, text: &str) -> Result<Response, ApiError> {
        let catalog = &self.registry.catalog;
        match catalog.resolve(text) {
            Ok(chosen) => {
                let facts = self.registry.nics.facts();
                let view = ProfileView::new(&chosen.profile, catalog, &facts);
                Ok(Response::Profile(Box::new(view)))
            }
            Err(error) => Err(ApiError::new(ErrorCode::NotFound, error.to_string())),
        }
    }

    fn port(&self, port: &Port) -> PortView {
        let rings = self.rings(port);
        let session = port.link.session();
        let state = match &session {
            None => PortState::Waiting,
            Some(_) if rings.is_empty() => PortState::Connected,
            Some(_) => PortState::Running,
        };
        let config = &port.config;
        PortView {
            name: config.name.clone(),
            socket: config.socket.clone(),
            mode: config.mode,
            profile: port.profile.name.clone(),
            profile_digest: port.profile.digest(),
            uplink: config.uplink.clone(),
            attach: config.attach,
            mac: config.mac(),
            state,
            refusal: None,
            binding: session.map(|session| binding(port, &session)),
            counters: sum(port.counters.iter().map(|counters| &**counters)),
            rings,
        }
    }

    /// The rings of a port; asking for them brings all counters up to date.
    fn rings(&self, port: &Port) -> Vec<RingView> {
        let reports = self.registry.fabric.inspect(port.id).unwrap_or_default();
        let view = |(worker, ring): (crate::datapath::WorkerId, crate::datapath::RingReport)| {
            let direction =
                if is_from_guest(ring.index) { Direction::FromGuest } else { Direction::ToGuest };
            RingView {
                index: ring.index,
                direction,
                size: ring.size,
                enabled: ring.enabled,
                broken: ring.broken.map(|fault| fault.to_string()),
                worker: worker.index(),
            }
        };
        reports.into_iter().map(view).collect()
    }

    fn uplink(&self, nic: &Nic) -> UplinkView {
        let interface = &nic.uplink.interface;
        let on_it = |port: &&Port| port.config.uplink == interface.name;
        let names = |ports: &BTreeMap<String, Port>| {
            ports.values().filter(on_it).map(|port| port.config.name.clone()).collect()
        };
        UplinkView {
            interface: interface.name.clone(),
            driver: interface.driver.clone(),
            xdp_mode: match nic.uplink.attach_mode {
                AttachMode::Native => XdpMode::Native,
                AttachMode::Generic => XdpMode::Generic,
            },
            socket_mode: match nic.uplink.socket_mode {
                SocketMode::ZeroCopy => SocketKind::Zerocopy,
                SocketMode::Copy => SocketKind::Copy,
            },
            reason: nic.uplink.reason.clone(),
            multi_buffer: nic.uplink.multi_buffer(),
            packet_max: nic.uplink.packet_max,
            queues: nic.queues.iter().map(|&(queue, _)| queue).collect(),
            mtu: nic.facts().mtu,
            mac: MacAddress(interface.mac),
            counters: self.uplink_counters(nic),
            ports: names(&self.registry.ports()),
        }
    }

    fn uplink_counters(&self, nic: &Nic) -> Counters {
        let fabric = &self.registry.fabric;
        // Any port: all counters are published.
        let _ = fabric.inspect(crate::datapath::PortId(0));
        sum(fabric.socket_counters(nic.id).chain([&*nic.counters]))
    }

    fn stats(&self) -> Stats {
        let registry = &self.registry;
        let uplink = |nic: &Nic| (nic.uplink.interface.name.clone(), self.uplink_counters(nic));
        let uplinks = registry.nics.iter().map(uplink).collect();
        let port = |port: &Port| {
            let counters = sum(port.counters.iter().map(|counters| &**counters));
            (port.config.name.clone(), counters)
        };
        let ports = registry.ports().values().map(port).collect();
        let workers = registry.fabric.workers().iter().enumerate();
        let workers = workers.map(|(id, worker)| WorkerView {
            id,
            cpu: worker.cpu,
            turns: worker.turns.turns(),
            sleeps: worker.turns.sleeps(),
            busy_nanoseconds: worker.turns.busy_nanoseconds(),
        });
        Stats { ports, uplinks, workers: workers.collect() }
    }
}

fn binding(port: &Port, session: &SessionBinding) -> BindingView {
    BindingView {
        profile: port.profile.name.clone(),
        digest: port.profile.digest(),
        offered: BitsView::device(session.offered),
        acknowledged: BitsView::device(session.acknowledged),
        protocol_features: BitsView::protocol(session.protocol_features),
        ring_sizes: session.ring_sizes.clone(),
        queue_pairs: session.queue_pairs,
        fingerprint: fingerprint(
            &port.profile.digest(),
            session.acknowledged,
            &session.ring_sizes,
            session.queue_pairs,
        ),
    }
}

/// A port that is kept and not served, with what is on record of it.
fn refused_port(port: &RefusedPort) -> PortView {
    let RefusedPort { config, bound, reason, .. } = port;
    let bound = bound.as_ref();
    PortView {
        name: config.name.clone(),
        socket: config.socket.clone(),
        mode: config.mode,
        profile: bound.map_or_else(|| config.profile.clone(), |bound| bound.profile.clone()),
        profile_digest: bound.map(|bound| bound.digest.clone()).unwrap_or_default(),
        uplink: config.uplink.clone(),
        attach: config.attach,
        mac: config.mac(),
        state: PortState::Refused,
        refusal: Some(reason.clone()),
        binding: None,
        counters: Counters::new(),
        rings: Vec::new(),
    }
}

fn refused(error: &PortError) -> ApiError {
    let code = match error {
        PortError::Exists(_) => ErrorCode::Exists,
        PortError::NotFound(_) => ErrorCode::NotFound,
        PortError::Thread(_) | PortError::Worker(_) | PortError::State(_) => ErrorCode::Internal,
        _ => ErrorCode::Refused,
    };
    ApiError::new(code, chain(error))
}
