//! The control interface over a real socket: our client and raw HTTP against a service in memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::raise_open_files;
use isonic::config::{Attach, PortConfig, SocketMode};
use isonic::control::api::{
    Deleted, HealthView, PortState, PortView, ProfileChange, ProfileView, Stats, Upgrade, Upgraded,
    VersionView,
};
use isonic::control::client::{Client, ClientError};
use isonic::control::{ApiError, ErrorCode, Request, Response, Service, server};
use isonic::platform::unix_socket::{self, Claimed, SocketFile};
use isonic::profile::{Catalog, UplinkFacts};
use serde_json::Value;

/// Ports in a map, and a request that fails in us.
#[derive(Default)]
struct InMemory {
    ports: Mutex<BTreeMap<String, PortConfig>>,
}

fn view(port: &PortConfig) -> PortView {
    PortView {
        name: port.name.clone(),
        socket: port.socket.clone(),
        mode: port.mode,
        profile: port.profile.clone(),
        profile_digest: "d".into(),
        uplink: port.uplink.clone(),
        attach: port.attach,
        mac: port.mac(),
        owner: None,
        state: PortState::Waiting,
        refusal: None,
        findings: Vec::new(),
        binding: None,
        counters: BTreeMap::from([("packets".into(), 7)]),
        rings: Vec::new(),
    }
}

fn missing(name: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no port \"{name}\""))
}

impl Service for InMemory {
    fn call(&self, request: Request) -> Result<Response, ApiError> {
        assert_ne!(request, Request::ListUplinks, "as a bug of ours would be");
        let catalog = Catalog::embedded();
        let uplinks = [UplinkFacts { name: "eth0".into(), mtu: 1400 }];
        let mut ports = self.ports.lock().unwrap();
        match request {
            Request::ListPorts => Ok(Response::Ports(ports.values().map(view).collect())),
            Request::ShowPort(name) => {
                let port = ports.get(&name).ok_or_else(|| missing(&name))?;
                Ok(Response::Port(Box::new(view(port))))
            }
            Request::AddPort(port) if ports.contains_key(&port.name) => {
                Err(ApiError::new(ErrorCode::Exists, "taken"))
            }
            Request::PutPort(port) if ports.get(&port.name) == Some(&port) => {
                Ok(Response::Port(Box::new(view(&port))))
            }
            Request::PutPort(port) if ports.contains_key(&port.name) => {
                let reasons = vec!["one".to_owned(), "two".to_owned()];
                Err(ApiError::new(ErrorCode::Exists, "one; two").because(reasons))
            }
            Request::AddPort(port) | Request::PutPort(port) => {
                let answer = view(&port);
                ports.insert(port.name.clone(), port);
                Ok(Response::Made(Box::new(answer)))
            }
            Request::SetProfile(name, change) => {
                let port = ports.get_mut(&name).ok_or_else(|| missing(&name))?;
                port.profile = change.profile;
                Ok(Response::Port(Box::new(view(port))))
            }
            Request::DeletePort(name) => match ports.remove(&name) {
                Some(_) => Ok(Response::Deleted(Deleted { deleted: name })),
                None => Err(missing(&name)),
            },
            Request::ListProfiles => Ok(Response::Profiles(ProfileView::all(&catalog, &uplinks))),
            Request::ShowProfile(name) if name == "busy" => {
                Err(ApiError::new(ErrorCode::Busy, "ask again"))
            }
            Request::ShowProfile(name) => {
                let chosen = catalog.resolve(&name).map_err(|_| missing(&name))?;
                let view = ProfileView::new(&chosen.profile, &catalog, &uplinks);
                Ok(Response::Profile(Box::new(view)))
            }
            Request::Stats => Ok(Response::Stats(Stats::default())),
            Request::Version => Ok(Response::Version(VersionView::current())),
            Request::Health => Ok(Response::Health(HealthView::default())),
            Request::ListUplinks => Ok(Response::Uplinks(Vec::new())),
            Request::Upgrade(Upgrade { binary, .. }) => {
                let message = format!("cannot start {binary:?}");
                Err(ApiError::new(ErrorCode::Refused, message))
            }
        }
    }
}

/// A served socket; dropped, it is shut down and waited for.
struct Server {
    path: PathBuf,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _file: SocketFile,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        raise_open_files();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let Claimed { listener, file } = unix_socket::claim(&path).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let service = Arc::new(InMemory::default());
            let shutdown = async move { stopped.await.unwrap_or_default() };
            let serving = server::serve(listener, service, shutdown);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(serving).unwrap();
        });
        Self { path, stop: Some(stop), thread: Some(thread), _file: file, _directory: directory }
    }

    fn client(&self) -> Client {
        Client::new(&self.path)
    }

    /// Status and body of one request as curl would send it.
    fn http(&self, head: &str, body: &str) -> (u16, Value) {
        let (head, body) = self.raw(head, body);
        assert!(head.contains("content-type: application/json"), "{head}");
        (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(&body).unwrap())
    }

    /// The head of an answer in lower case, and the body.
    fn raw(&self, head: &str, body: &str) -> (String, String) {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        let length = body.len();
        let request = format!(
            "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A body that is not read to its end ends the connection with a reset, after the answer.
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => {}
        }
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn port(name: &str) -> PortConfig {
    PortConfig {
        name: name.into(),
        socket: "/run/vm.sock".into(),
        mode: SocketMode::Client,
        profile: "org.isonic.net.v1".into(),
        allow_draft: false,
        uplink: "eth0".into(),
        attach: Attach::Wire,
        mac: None,
        queues: Some(vec![1]),
        socket_group: None,
        socket_permissions: None,
        owner: None,
    }
}

/// Status and code of each error in the table of docs/operations/api.md.
fn documented_errors() -> BTreeSet<(u16, String)> {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations/api.md");
    let manual = std::fs::read_to_string(manual).unwrap();
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let (status, code) = (cells.next()?.parse().ok()?, cells.next()?);
        // Another table has exit statuses.
        (status >= 400).then(|| (status, code.trim_matches('`').to_owned()))
    };
    manual.lines().filter_map(row).collect()
}

#[test]
fn a_port_is_added_shown_listed_and_deleted() {
    let server = Server::start();
    let client = server.client();
    let added: PortView = client.call(&Request::AddPort(port("vm1"))).unwrap();
    assert_eq!(added, view(&port("vm1")));
    let shown: PortView = client.call(&Request::ShowPort("vm1".into())).unwrap();
    assert_eq!(shown, added);
    let listed: Vec<PortView> = client.call(&Request::ListPorts).unwrap();
    assert_eq!(listed, [added]);
    let profile = "org.isonic.net.v1,max_ring=256".to_owned();
    let change = ProfileChange { profile: profile.clone(), allow_draft: false };
    let changed: PortView = client.call(&Request::SetProfile("vm1".into(), change)).unwrap();
    assert_eq!(changed.profile, profile);
    let deleted: Deleted = client.call(&Request::DeletePort("vm1".into())).unwrap();
    assert_eq!(deleted.deleted, "vm1");
    let listed: Vec<PortView> = client.call(&Request::ListPorts).unwrap();
    assert_eq!(listed, []);
}

#[test]
fn an_error_of_the_service_reaches_the_client_whole() {
    let server = Server::start();
    let error = server.client().call::<PortView>(&Request::ShowPort("a b/c".into())).unwrap_err();
    let ClientError::Refused(error) = error else { panic!("{error}") };
    assert_eq!(error, missing("a b/c"));
    let upgrade = Request::Upgrade(Upgrade { binary: Some("/new/isonic".into()), force: false });
    let error = server.client().call::<Upgraded>(&upgrade).unwrap_err();
    assert_eq!(error.to_string(), "cannot start Some(\"/new/isonic\")");
}

#[test]
fn a_port_that_is_put_twice_is_made_once_and_another_content_is_refused_with_each_difference() {
    let server = Server::start();
    let mut body = serde_json::to_value(port("vm1")).unwrap();
    for status in [201, 200, 200] {
        let (seen, answer) = server.http("PUT /v1/ports/vm1", &body.to_string());
        assert_eq!((seen, answer["name"].as_str()), (status, Some("vm1")));
    }
    let put: PortView = server.client().call(&Request::PutPort(port("vm1"))).unwrap();
    assert_eq!(put, view(&port("vm1")));
    body["uplink"] = "eth9".into();
    let (status, answer) = server.http("PUT /v1/ports/vm1", &body.to_string());
    assert_eq!((status, &answer["error"]["code"]), (409, &"exists".into()));
    assert_eq!(answer["error"]["reasons"], serde_json::json!(["one", "two"]));
    let (status, answer) = server.http("PUT /v1/ports/vm2", &body.to_string());
    assert_eq!((status, &answer["error"]["code"]), (400, &"invalid".into()));
    assert!(answer["error"]["message"].as_str().unwrap().contains("vm2"), "{answer}");
}

#[test]
fn an_error_of_a_later_version_or_of_an_earlier_one_is_still_an_error() {
    let text = r#"{"code":"melted","message":"m"}"#;
    let error: ApiError = serde_json::from_str(text).unwrap();
    assert_eq!((error.code, error.reasons.len()), (ErrorCode::Unknown, 0));
}

#[test]
fn a_profile_tells_what_stands_against_it_on_each_uplink() {
    let server = Server::start();
    let request = Request::ShowProfile("org.isonic.net.v3".into());
    let profile: ProfileView = server.client().call(&request).unwrap();
    assert!(profile.latest && profile.blockers.is_empty());
    assert!(profile.guest_features.names.contains(&"mrg_rxbuf".to_owned()));
    assert!(profile.uplinks["eth0"][0].contains("its MTU is 1500, and uplink eth0 carries 1400"));
    let all: Vec<ProfileView> = server.client().call(&Request::ListProfiles).unwrap();
    assert!(all.contains(&profile) && all.len() > 1);
}

#[test]
fn a_list_of_values_is_shown_as_the_profile_that_it_is() {
    let server = Server::start();
    let request = Request::ShowProfile("latest, mq=off,queue_pairs=1".into());
    let profile: ProfileView = server.client().call(&request).unwrap();
    assert_eq!(profile.name, "org.isonic.net.v3,mq=off,queue_pairs=1");
    assert_eq!((profile.queue_pairs_max, profile.latest), (1, false));
}

#[test]
fn every_failure_is_json_with_a_code_and_its_status() {
    let server = Server::start();
    let body = serde_json::to_string(&port("vm1")).unwrap();
    assert_eq!(server.http("POST /v1/ports", &body).0, 201);
    let without_profile = body.replace("\"profile\":\"org.isonic.net.v1\",", "");
    assert_ne!(without_profile, body);
    let huge = "x".repeat(1 << 17);
    // serde takes these for objects, field by field.
    let array = r#"["vm2", "/s", "server", "org.isonic.net.v1", false, "eth0"]"#;
    let mut documented = documented_errors();
    let mut sent = BTreeSet::from([(409, "refused".to_owned())]);
    for (head, body, status, code) in [
        ("POST /v1/ports", array, 400, "invalid"),
        ("POST /v1/ports", "", 400, "invalid"),
        ("POST /v1/ports", " \n7", 400, "invalid"),
        ("POST /v1/ports", "null", 400, "invalid"),
        ("POST /v1/ports", "{} {}", 400, "invalid"),
        ("PUT /v1/ports/vm1", "[]", 400, "invalid"),
        ("PUT /v1/ports/vm1/profile", r#"["org.isonic.net.v1"]"#, 400, "invalid"),
        ("POST /v1/upgrade", "[]", 400, "invalid"),
        ("POST /v1/upgrade", "[\"/bin/true\"]", 400, "invalid"),
        ("POST /v1/upgrade", "{}", 409, "refused"),
        ("GET /v1/profiles/busy", "", 503, "busy"),
        ("GET /v1/ports/%ff", "", 400, "invalid"),
        ("DELETE /v1/ports/%c3%28", "", 400, "invalid"),
        ("PUT /v1/ports/%ff/profile", "{\"profile\": \"p\"}", 400, "invalid"),
        ("GET /v1/profiles/%80", "", 400, "invalid"),
        ("GET /v1/ports/", "", 404, "not_found"),
        ("GET /", "", 404, "not_found"),
        ("DELETE /v1/stats", "", 405, "invalid"),
        ("OPTIONS /v1/ports/vm1", "", 405, "invalid"),
        ("BREW /v1/ports", "", 405, "invalid"),
        ("POST /v1/ports", body.as_str(), 409, "exists"),
        ("POST /v1/ports", "{\"name\": 1}", 400, "invalid"),
        ("POST /v1/ports", huge.as_str(), 413, "invalid"),
        ("POST /v1/ports", without_profile.as_str(), 400, "invalid"),
        ("PUT /v1/ports/vm1/profile", "{}", 400, "invalid"),
        ("PUT /v1/ports/other/profile", "{\"profile\": \"p\"}", 404, "not_found"),
        ("GET /v1/ports/other", "", 404, "not_found"),
        ("DELETE /v1/ports/other", "", 404, "not_found"),
        ("GET /v2/ports", "", 404, "not_found"),
        ("PUT /v1/ports", "", 405, "invalid"),
        ("GET /v1/uplinks", "", 500, "internal"),
    ] {
        let (seen, answer) = server.http(head, body);
        assert_eq!((seen, answer["error"]["code"].as_str()), (status, Some(code)), "{head}");
        let (message, reasons) = (&answer["error"]["message"], &answer["error"]["reasons"]);
        assert!(message.as_str().is_some_and(|message| message.lines().count() == 1), "{answer}");
        assert_eq!(reasons.as_array().map(Vec::len), Some(1), "{answer}");
        sent.insert((seen, code.to_owned()));
    }
    documented.retain(|error| !sent.remove(error));
    assert!(documented.is_empty() && sent.is_empty(), "{documented:?} {sent:?}");
    let (head, _) = server.raw("PATCH /v1/ports/vm1", "");
    assert!(head.contains("allow: get,head,put,delete"), "{head}");
    // And it still serves.
    let (status, version) = server.http("GET /v1/version", "");
    assert_eq!((status, version["api"].as_u64()), (200, Some(1)));
}

#[test]
fn an_unknown_field_of_a_port_is_refused_by_name() {
    let server = Server::start();
    let mut body = serde_json::to_value(port("vm1")).unwrap();
    body["colour"] = "red".into();
    let (status, answer) = server.http("POST /v1/ports", &body.to_string());
    assert_eq!(status, 400);
    assert!(answer["error"]["message"].as_str().unwrap().contains("colour"));
}

#[test]
fn a_client_that_sends_half_a_request_does_not_keep_the_server() {
    let server = Server::start();
    let mut stream = UnixStream::connect(&server.path).unwrap();
    stream.write_all(b"GET /v1/ver").unwrap();
    drop(server);
}

/// Idle, in the middle of a request's head, of its body, and with an answer that nobody reads.
#[test]
fn connections_that_are_left_open_lock_nobody_out() {
    let server = Server::start();
    let beginnings = [
        "",
        "GET /v1/ver",
        "POST /v1/ports HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{",
        "GET /v1/profiles HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    let mut left_open = Vec::new();
    for beginning in beginnings.into_iter().cycle().take(400) {
        let mut stream = UnixStream::connect(&server.path).unwrap();
        stream.write_all(beginning.as_bytes()).unwrap();
        left_open.push(stream);
    }
    let (status, _) = server.http("GET /v1/version", "");
    assert_eq!(status, 200);
    // Those that have waited longest have made room.
    let mut rest = Vec::new();
    left_open[0].read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

/// Thousands a second, each left open without a word: whoever has just come gets its time.
#[test]
fn a_flood_of_new_connections_cuts_nobody_who_asks_something() {
    let server = Server::start();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = || {
            let mut open = VecDeque::new();
            while !stop.load(Ordering::Relaxed) {
                open.extend(UnixStream::connect(&server.path));
                if open.len() > 300 {
                    open.pop_front();
                }
            }
        };
        for _ in 0..3 {
            scope.spawn(flood);
        }
        std::thread::sleep(Duration::from_millis(300));
        let answered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..5 {
                assert_eq!(server.http("GET /v1/version", "").0, 200);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        answered.unwrap();
    });
}

#[test]
fn clients_that_ask_without_end_keep_nobody_out() {
    let server = Server::start();
    let mut busy: Vec<_> = (0..64).map(|_| UnixStream::connect(&server.path).unwrap()).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ask = || {
            while !stop.load(Ordering::Relaxed) {
                for stream in &mut busy {
                    let request = b"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n";
                    if stream.write_all(request).is_err() || stream.read(&mut [0; 4096]).is_err() {
                        continue;
                    }
                }
            }
        };
        scope.spawn(ask);
        std::thread::sleep(Duration::from_millis(300));
        let status = server.http("GET /v1/version", "").0;
        stop.store(true, Ordering::Relaxed);
        assert_eq!(status, 200);
    });
}

#[test]
fn a_long_name_is_not_repeated() {
    let server = Server::start();
    let (status, answer) = server.http(&format!("GET /v1/ports/{}", "x".repeat(10_000)), "");
    assert_eq!(status, 404);
    assert!(answer.to_string().len() < 1000, "{answer}");
}

#[test]
fn a_head_without_end_is_refused() {
    let server = Server::start();
    let mut stream = UnixStream::connect(&server.path).unwrap();
    let line = format!("X-Filler: {}\r\n", "x".repeat(1000));
    let _ = stream.write_all(b"GET /v1/version HTTP/1.1\r\n");
    // The server closes as soon as it is too much.
    let sent = (0..1000).take_while(|_| stream.write_all(line.as_bytes()).is_ok()).count();
    assert!(sent < 1000, "{sent} KB were taken");
    assert_eq!(server.http("GET /v1/version", "").0, 200);
}

#[test]
fn no_daemon_is_told_as_such() {
    let client = Client::new(Path::new("/nonexistent/api.sock"));
    let error = client.call::<Stats>(&Request::Stats).unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
}
