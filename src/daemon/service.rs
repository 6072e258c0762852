//! Answers the API: views of ports, NICs and counters, and changes of ports.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::config::PortProblem;
use crate::control::api::{
    BindingView, BitsView, Counters, Deleted, Direction, PortState, PortView, ProfileView,
    RingView, SocketKind, Stats, Upgrade, Upgraded, UplinkState, UplinkView, VersionView,
    WorkerView, XdpMode,
};
use crate::control::{ApiError, ErrorCode, Request, Response, Service};
use crate::datapath::{PortId, RingReport, WorkerId, is_from_guest};
use crate::device::mac::MacAddress;
use crate::metrics::sum;
use crate::profile::{Catalog, fingerprint};
use crate::report::chain;
use crate::vhost_user::SessionBinding;
use crate::xdp::{AttachMode, BindMode};

use super::nic::{Nic, NicState, Nics};
use super::ownership::{DaemonBusy, Ownership};
use super::ports::{Origin, Port, PortError, PortMap, RefusedPort, Registry};
use super::problems::HostProblems;
use super::upgrade::{CompletedUpgrade, UpgradeError, Upgrader};
use super::workers::{PortRings, Workers};

/// The daemon as the API sees it.
#[derive(Debug)]
pub struct DaemonService {
    /// The ports.
    pub registry: Arc<Registry>,
    /// The NICs.
    pub nics: Arc<Nics>,
    /// The workers.
    pub workers: Arc<Workers>,
    /// The profiles.
    pub catalog: Arc<Catalog>,
    /// Whether this process owns all of this.
    pub ownership: Arc<Ownership>,
    /// The problems of the host.
    pub problems: Arc<HostProblems>,
    /// Has another process take over.
    pub upgrader: Arc<Upgrader>,
}

impl Service for DaemonService {
    fn call(&self, request: Request) -> Result<Response, ApiError> {
        if let Request::Upgrade(asked) = &request {
            return self.upgrade(asked);
        }
        self.ownership.check_readable().map_err(busy)?;
        let reads = request.reads();
        let answer = self.answer(request);
        if reads {
            // The data that was read may be another process's by now.
            self.ownership.check_readable().map_err(busy)?;
        }
        answer
    }
}

impl DaemonService {
    fn answer(&self, request: Request) -> Result<Response, ApiError> {
        let registry = &self.registry;
        match request {
            Request::ListPorts => Ok(Response::Ports(self.ports())),
            Request::ShowPort(name) => self.show_port(&name).map(Response::Port),
            Request::AddPort(config) => {
                let name = config.name.clone();
                registry.add(config, Origin::Api).map_err(|error| refused(&error))?;
                self.show_port(&name).map(Response::Made)
            }
            Request::PutPort(config) => {
                let name = config.name.clone();
                let made = registry.put(config).map_err(|error| refused(&error))?;
                let view = self.show_port(&name)?;
                Ok(if made { Response::Made(view) } else { Response::Port(view) })
            }
            Request::SetProfile(name, change) => {
                registry.set_profile(&name, &change).map_err(|error| refused(&error))?;
                self.show_port(&name).map(Response::Port)
            }
            Request::DeletePort(name) => {
                registry.remove(&name).map_err(|error| refused(&error))?;
                Ok(Response::Deleted(Deleted { deleted: name }))
            }
            Request::ListUplinks => Ok(Response::Uplinks(self.uplinks())),
            Request::ListProfiles => {
                Ok(Response::Profiles(ProfileView::all(&self.catalog, &self.nics.facts())))
            }
            Request::ShowProfile(name) => self.show_profile(&name),
            Request::Stats => Ok(Response::Stats(self.stats())),
            Request::Version => Ok(Response::Version(VersionView::current())),
            Request::Upgrade(asked) => self.upgrade(&asked),
            Request::Health => Ok(Response::Health(self.problems.view())),
        }
    }

    fn upgrade(&self, asked: &Upgrade) -> Result<Response, ApiError> {
        let upgraded = self.upgrader.upgrade(asked);
        let CompletedUpgrade { pid, running, changes } = upgraded.map_err(|error| match error {
            UpgradeError::Busy(reason) => busy(reason),
            UpgradeError::Binary(_) => ApiError::new(ErrorCode::Invalid, chain(&error)),
            error => ApiError::new(ErrorCode::Refused, chain(&error)),
        })?;
        let running = running.as_ref();
        // An older version does not report it.
        let unanswered = running.map(|running| running.unanswered_nanoseconds / 1000);
        let unanswered = unanswered.filter(|&time| time != 0);
        Ok(Response::Upgraded(Upgraded {
            pid,
            version: running.map(|running| running.version.clone()),
            outage_microseconds: running.map(|running| running.outage_nanoseconds / 1000),
            unanswered_microseconds: unanswered,
            sessions: running.map_or(0, |running| running.sessions),
            reconnecting: running.map(|running| running.reconnecting.clone()).unwrap_or_default(),
            changed: changes,
        }))
    }

    /// All ports by name, served or not.
    fn ports(&self) -> Vec<PortView> {
        let ports = self.registry.ports();
        // One inspection for all ports: each inspection has every counter published, whose time
        // grows with the number of ports.
        let mut rings = self.workers.inspect_all().unwrap_or_default();
        let view = |port: &Port| self.port(port, rings.remove(&port.id).unwrap_or_default());
        let mut views: Vec<PortView> = ports.values().map(view).collect();
        views.extend(self.registry.refused().values().map(refused_port));
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }

    fn show_port(&self, name: &str) -> Result<Box<PortView>, ApiError> {
        let ports = self.registry.ports();
        let rings = |port: &Port| self.workers.inspect(port.id).unwrap_or_default();
        let served = ports.get(name).map(|port| self.port(port, rings(port)));
        let view = served.or_else(|| self.registry.refused().get(name).map(refused_port));
        let missing = || refused(&PortError::NotFound(name.to_owned()));
        view.map(Box::new).ok_or_else(missing)
    }

    fn show_profile(&self, text: &str) -> Result<Response, ApiError> {
        let catalog = &*self.catalog;
        match catalog.resolve(text) {
            Ok(chosen) => {
                let facts = self.nics.facts();
                let view = ProfileView::new(&chosen.profile, catalog, &facts);
                Ok(Response::Profile(Box::new(view)))
            }
            Err(error) => Err(ApiError::new(ErrorCode::NotFound, error.to_string())),
        }
    }

    fn port(&self, port: &Port, rings: PortRings) -> PortView {
        let rings: Vec<RingView> = rings.into_iter().map(ring).collect();
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
            owner: config.owner.clone(),
            state,
            refusal: None,
            findings: port.link.findings(),
            binding: session.map(|session| binding(port, &session)),
            counters: sum(port.counters.iter().map(|counters| &**counters)),
            rings,
        }
    }

    /// Bring all counters up to date, once for each request.
    fn publish(&self) {
        // Any port will do: all counters are published.
        let _ = self.workers.inspect(PortId(0));
    }

    fn uplinks(&self) -> Vec<UplinkView> {
        self.publish();
        self.nics.iter().map(|nic| self.uplink(nic)).collect()
    }

    fn uplink(&self, nic: &Nic) -> UplinkView {
        let status = nic.status();
        let (interface, attachment) = (&status.interface, &status.attachment);
        let on_it = |port: &&Port| port.config.uplink == nic.config.interface;
        let names = |ports: &PortMap| {
            ports.values().filter(on_it).map(|port| port.config.name.clone()).collect()
        };
        UplinkView {
            interface: nic.config.interface.clone(),
            present_name: interface.name.clone(),
            state: match status.state {
                NicState::Up => UplinkState::Up,
                NicState::Down => UplinkState::Down,
                NicState::Gone => UplinkState::Gone,
                NicState::Failed => UplinkState::Failed,
            },
            state_since: seconds(status.since),
            problem: Some(status.problem.clone()).filter(|problem| !problem.is_empty()),
            driver: interface.driver.clone(),
            xdp_mode: match attachment.attach_mode {
                AttachMode::Native => XdpMode::Native,
                AttachMode::Generic => XdpMode::Generic,
            },
            socket_mode: match attachment.socket_mode {
                BindMode::ZeroCopy => SocketKind::Zerocopy,
                BindMode::Copy => SocketKind::Copy,
            },
            reason: attachment.reason.clone(),
            multi_buffer: attachment.multi_buffer(),
            packet_max: attachment.packet_max,
            queues: status.queues.iter().map(|&(queue, _)| queue).collect(),
            mtu: nic.facts().mtu,
            mac: MacAddress(interface.mac),
            host_device: status.host_device.clone(),
            steering_set: status.steering_set,
            program_id: nic.program_id(),
            cautions: status.cautions.iter().map(ToString::to_string).collect(),
            unserved_queues: status.unserved_queues.clone(),
            counters: self.uplink_counters(nic),
            ports: names(&self.registry.ports()),
        }
    }

    fn uplink_counters(&self, nic: &Nic) -> Counters {
        let workers = &self.workers;
        nic.count();
        let sockets = workers.socket_counters(nic.id);
        let mut counters = sum(sockets.iter().chain([&nic.counters]).map(|counters| &**counters));
        if let Some(host) = workers.host(nic.id) {
            *counters.entry("to_host_dropped".to_owned()).or_default() += host.dropped();
        }
        counters
    }

    fn stats(&self) -> Stats {
        self.publish();
        let registry = &self.registry;
        let uplink = |nic: &Nic| (nic.config.interface.clone(), self.uplink_counters(nic));
        let uplinks = self.nics.iter().map(uplink).collect();
        let port = |port: &Port| {
            let counters = sum(port.counters.iter().map(|counters| &**counters));
            (port.config.name.clone(), counters)
        };
        let ports = registry.ports().values().map(port).collect();
        let workers = self.workers.entries().iter().enumerate();
        let workers = workers.map(|(id, worker)| WorkerView {
            id,
            cpu: worker.cpu,
            turns: worker.turns.turns(),
            sleeps: worker.turns.sleeps(),
            busy_nanoseconds: worker.turns.busy_nanoseconds(),
        });
        let problems = self.problems.list();
        Stats { ports, uplinks, workers: workers.collect(), problems }
    }
}

fn ring((worker, ring): (WorkerId, RingReport)) -> RingView {
    let from_guest = is_from_guest(ring.index);
    RingView {
        index: ring.index,
        direction: if from_guest { Direction::FromGuest } else { Direction::ToGuest },
        size: ring.size,
        enabled: ring.enabled,
        broken: ring.broken.map(|fault| fault.to_string()),
        worker: worker.index(),
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
        stop_microseconds: session.took.stopping.map(microseconds),
        start_microseconds: session.took.starting.map(microseconds),
        fingerprint: fingerprint(
            &port.profile.digest(),
            session.acknowledged,
            &session.ring_sizes,
            session.queue_pairs,
        ),
    }
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A port that is kept and not served, with its record.
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
        owner: config.owner.clone(),
        state: PortState::Refused,
        refusal: Some(reason.clone()),
        findings: Vec::new(),
        binding: None,
        counters: Counters::new(),
        rings: Vec::new(),
    }
}

fn busy(reason: DaemonBusy) -> ApiError {
    ApiError::new(ErrorCode::Busy, reason.to_string())
}

fn refused(error: &PortError) -> ApiError {
    let code = match error {
        PortError::Busy(_) | PortError::Changing(_) => ErrorCode::Busy,
        PortError::Exists(_) | PortError::Differs { .. } => ErrorCode::Exists,
        PortError::Problems(problems)
            if problems.iter().any(PortProblem::is_of_the_port_itself) =>
        {
            ErrorCode::Invalid
        }
        PortError::NotFound(_) => ErrorCode::NotFound,
        PortError::Thread(_) | PortError::Worker(_) | PortError::State(_) => ErrorCode::Internal,
        _ => ErrorCode::Refused,
    };
    ApiError::new(code, chain(error)).because(error.reasons())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use crossbeam::channel::{Receiver, Sender, bounded};
    use tempfile::TempDir;

    use super::*;
    use crate::config::{self, PortConfig};
    use crate::control::api::ProfileChange;
    use crate::daemon::nic::KnownUplink;
    use crate::daemon::ports::{RegistrySetup, StateFile};
    use crate::daemon::upgrade::{ExportSource, OwnProgram};
    use crate::daemon::watches::Watches;
    use crate::daemon::workers::WorkersSetup;
    use crate::vhost_user::{Connection, PortSocket, SessionEnd, SocketSource};
    use crate::xdp::BindMode;

    const OLD: &str = "org.isonic.net.v1";
    const NEW: &str = "org.isonic.net.v2,ring_packed=off";

    /// A daemon whose one uplink is away, with one port added at run time.
    struct Served {
        service: DaemonService,
        watches: Arc<Watches>,
        directory: TempDir,
    }

    impl Served {
        fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path();
            let text = format!(
                "state_dir = \"{0}/state\"\nruntime_dir = \"{0}\"\n\
                 [[uplinks]]\ninterface = \"isonic-away\"\n",
                path.display()
            );
            let config = config::parse(Path::new("isonic.toml"), &text).unwrap();
            let known = KnownUplink {
                driver: "veth".into(),
                mac: MacAddress([2, 0, 0, 0, 0, 1]),
                mtu: 1500,
                packet_max: 3840,
                attach_mode: AttachMode::Native,
                socket_mode: BindMode::Copy,
                queues: vec![0],
            };
            let known = BTreeMap::from([("isonic-away".to_owned(), known)]);
            let (nics, sockets) = Nics::open(&config, &mut BTreeMap::new(), &known).unwrap();
            let uplinks = nics.for_workers();
            let setup = WorkersSetup { cpus: None, sockets, uplinks, paused: false };
            let (nics, workers) = (Arc::new(nics), Workers::start(setup).unwrap());
            let state = Some(Arc::new(StateFile::open(&path.join("state"), None).unwrap()));
            let catalog = Arc::new(Catalog::embedded());
            let (ownership, problems) =
                (Arc::<Ownership>::default(), Arc::<HostProblems>::default());
            let registry = Arc::new(Registry::new(RegistrySetup {
                config,
                catalog: Arc::clone(&catalog),
                nics: Arc::clone(&nics),
                workers: Arc::clone(&workers),
                ownership: Arc::clone(&ownership),
                problems: Arc::clone(&problems),
                state: state.clone(),
                inherited: None,
            }));
            let watches = Arc::new(Watches::new(
                Arc::clone(&nics),
                Arc::clone(&workers),
                Arc::clone(&registry),
                Arc::clone(&ownership),
            ));
            let exported = ExportSource {
                registry: Arc::clone(&registry),
                nics: Arc::clone(&nics),
                workers: Arc::clone(&workers),
                ownership: Arc::clone(&ownership),
                problems: Arc::clone(&problems),
                watches: Arc::clone(&watches),
                state,
                runtime_lock: None,
            };
            let upgrader = Arc::new(Upgrader::new(OwnProgram::new(None).unwrap(), exported));
            let service =
                DaemonService { registry, nics, workers, catalog, ownership, problems, upgrader };
            let served = Self { service, watches, directory };
            served.service.call(Request::AddPort(served.port(OLD))).unwrap();
            served
        }

        fn registry(&self) -> &Registry {
            &self.service.registry
        }

        fn port(&self, profile: &str) -> PortConfig {
            let socket = self.directory.path().join("vm1.sock");
            let port = serde_json::json!({
                "name": "vm1", "socket": socket, "profile": profile, "uplink": "isonic-away",
            });
            serde_json::from_value(port).unwrap()
        }

        fn set_profile(&self) -> Request {
            let change = ProfileChange { profile: NEW.into(), allow_draft: false };
            Request::SetProfile("vm1".into(), change)
        }

        /// Give the port a session whose thread, once its connection is cut, waits until it is
        /// released. A system call that waits for a front-end has the same effect.
        fn hold_session(&self) -> (UnixStream, Receiver<()>, Sender<()>) {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let ((cut, is_cut), (release, released)) = (bounded(1), bounded(1));
            let session = move |connection: &mut Connection| {
                let _ = (&**connection.stream()).read(&mut [0]);
                cut.send(()).unwrap();
                let _ = released.recv();
                SessionEnd::Disconnected
            };
            let socket = PortSocket::start(SocketSource::Stream(theirs), "vm1", session).unwrap();
            self.registry().ports().get_mut("vm1").unwrap().socket = socket;
            (ours, is_cut, release)
        }

        /// Call `look` while the daemon waits for the port's session to end, because of this
        /// request. Returns the request's response.
        fn meanwhile(&self, request: Request, look: impl FnOnce()) -> Response {
            let (_frontend, is_cut, release) = self.hold_session();
            std::thread::scope(|scope| {
                let answer = scope.spawn(|| self.service.call(request));
                is_cut.recv().unwrap();
                look();
                // If `look` panics, the session is released at the end.
                drop(release);
                answer.join().unwrap().unwrap()
            })
        }

        fn assert_ask_again(&self) {
            let upgrade = Upgrade { binary: Some("/bin/false".into()), force: true };
            for request in [
                Request::AddPort(self.port(OLD)),
                Request::PutPort(self.port(OLD)),
                Request::DeletePort("vm1".into()),
                self.set_profile(),
                Request::Upgrade(upgrade),
            ] {
                let error = self.service.call(request.clone()).unwrap_err();
                assert_eq!(error.code.status(), 503, "{request:?}: {error}");
                assert!(error.message.contains("is being removed or changed"), "{error}");
                assert!(error.message.contains("ask again"), "{error}");
            }
        }

        /// The profiles of the kept ports after everything is saved again, as another save does.
        fn saved_again(&self) -> Vec<String> {
            self.registry().record().unwrap();
            let text = std::fs::read(self.directory.path().join("state/ports.json")).unwrap();
            let state: serde_json::Value = serde_json::from_slice(&text).unwrap();
            let kept: Vec<PortConfig> = serde_json::from_value(state["ports"].clone()).unwrap();
            assert_eq!(state["bindings"].as_object().unwrap().len(), kept.len());
            kept.into_iter().map(|port| port.profile).collect()
        }

        /// The profiles that another process would be told.
        fn told(&self) -> Vec<String> {
            let records = self.registry().records(&self.registry().ports());
            records.into_iter().map(|record| record.config.profile).collect()
        }
    }

    impl Drop for Served {
        fn drop(&mut self) {
            self.registry().stop();
            self.service.workers.stop();
        }
    }

    #[test]
    fn what_can_never_be_as_it_is_asked_for_is_invalid_and_what_conflicts_is_refused() {
        let served = Served::start();
        let port = |key: &str, value: serde_json::Value| {
            let mut port = serde_json::to_value(served.port(OLD)).unwrap();
            let socket = served.directory.path().join("other.sock");
            (port["name"], port["socket"]) = ("vm2".into(), socket.to_str().into());
            port["mac"] = "52:54:00:00:00:02".into();
            port[key] = value;
            Request::AddPort(serde_json::from_value(port).unwrap())
        };
        let upgrade =
            |binary: &str| Request::Upgrade(Upgrade { binary: Some(binary.into()), force: false });
        let change = ProfileChange { profile: "nobodys".into(), allow_draft: false };
        let vm1 = served.directory.path().join("vm1.sock");
        for (request, code) in [
            (port("socket", "/tmp/a\0b".into()), ErrorCode::Invalid),
            (port("socket", "/tmp/a/".into()), ErrorCode::Invalid),
            (port("socket", "/".into()), ErrorCode::Invalid),
            (port("socket", "/tmp/..".into()), ErrorCode::Invalid),
            (port("profile", "nobodys".into()), ErrorCode::Invalid),
            (port("profile", "org.isonic.net.v4".into()), ErrorCode::Invalid),
            (port("profile", "org.isonic.net.v1,mtu=1".into()), ErrorCode::Invalid),
            (Request::SetProfile("vm1".into(), change), ErrorCode::Invalid),
            (upgrade("isonic"), ErrorCode::Invalid),
            (upgrade(""), ErrorCode::Invalid),
            (upgrade("/a\0b"), ErrorCode::Invalid),
            (port("uplink", "nobodys".into()), ErrorCode::Refused),
            (port("socket", vm1.to_str().into()), ErrorCode::Refused),
            (port("socket", "/nowhere/a".into()), ErrorCode::Refused),
        ] {
            let error = served.service.call(request.clone()).unwrap_err();
            assert_eq!(error.code, code, "{request:?}: {error}");
        }
    }

    #[test]
    fn a_port_that_is_there_and_refused_is_tried_again_when_it_is_put() {
        let served = Served::start();
        let directory = served.directory.path().join("later");
        let port = PortConfig {
            name: "vm2".into(),
            socket: directory.join("vm2.sock"),
            mac: Some(MacAddress([0x52, 0x54, 0, 0, 0, 2])),
            ..served.port(OLD)
        };
        served.registry().restore(port.clone(), Origin::State).unwrap();
        let put = || served.service.call(Request::PutPort(port.clone()));
        let error = put().unwrap_err();
        assert_eq!(error.code, ErrorCode::Refused);
        assert!(error.message.contains("create it first"), "{error}");
        assert_eq!(served.registry().refused().len(), 1, "it is kept");
        std::fs::create_dir(&directory).unwrap();
        let Response::Port(view) = put().unwrap() else { panic!("it was there") };
        assert_eq!((view.state, served.registry().refused().len()), (PortState::Waiting, 0));
        assert_eq!(put().unwrap(), Response::Port(view));
    }

    #[test]
    fn a_port_that_is_being_removed_is_neither_kept_nor_handed_over_and_whoever_asks_asks_again() {
        let served = Served::start();
        assert_eq!((served.saved_again(), served.told()), (vec![OLD.into()], vec![OLD.into()]));
        let answer = served.meanwhile(Request::DeletePort("vm1".into()), || {
            served.assert_ask_again();
            assert_eq!((served.saved_again(), served.told()), (vec![], vec![]));
        });
        assert_eq!(answer, Response::Deleted(Deleted { deleted: "vm1".into() }));
        assert_eq!(served.registry().check_settled(&served.registry().ports()), Ok(()));
        served.service.call(Request::AddPort(served.port(NEW))).unwrap();
        assert_eq!(served.saved_again().len(), 1);
    }

    #[test]
    fn a_port_that_is_being_changed_is_kept_as_it_will_be_and_whoever_asks_asks_again() {
        let served = Served::start();
        let old = served.saved_again();
        let mut kept = Vec::new();
        let answer = served.meanwhile(served.set_profile(), || {
            served.assert_ask_again();
            kept = served.saved_again();
        });
        let Response::Port(port) = answer else { panic!("{answer:?}") };
        assert_ne!(kept, old);
        assert_eq!(kept, [port.profile]);
        assert_eq!(served.saved_again(), kept);
        assert_eq!(served.registry().check_settled(&served.registry().ports()), Ok(()));
    }

    #[test]
    fn threads_are_started_again_by_the_owner_alone_and_not_with_the_ports_locked() {
        let Served { service, watches, .. } = &Served::start();
        service.ownership.prepare().unwrap();
        assert!(watches.start_again().is_none());
        drop(service.ownership.undecided());
        {
            // Stopping a thread waits for it, and the thread may wait for the ports.
            let _ports = service.registry.ports();
            watches.start_again().unwrap().unwrap();
        }
        watches.leave_ports();
        watches.leave_nics();
    }
}
