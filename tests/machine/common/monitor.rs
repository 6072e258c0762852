//! QEMU's monitor (QMP): commands, and the events that come between their answers.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::wait_for;

/// How long QEMU may take to answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// One QEMU's monitor, connected to when it is first used.
#[derive(Debug)]
pub struct Monitor {
    path: PathBuf,
    stream: Option<BufReader<UnixStream>>,
    events: Vec<Value>,
}

impl Monitor {
    /// On this socket of QEMU's.
    pub fn new(path: PathBuf) -> Self {
        Self { path, stream: None, events: Vec::new() }
    }

    /// The answer to a command; panics if it is refused.
    pub fn command(&mut self, name: &str, arguments: &Value) -> Value {
        let answer = self.ask(name, arguments);
        answer.unwrap_or_else(|error| panic!("{name} {arguments}: {error}"))
    }

    /// QEMU's error for a command that it refuses; panics if it does not.
    pub fn refusal(&mut self, name: &str, arguments: &Value) -> String {
        match self.ask(name, arguments) {
            Err(error) => error,
            Ok(answer) => panic!("{name} {arguments} was not refused: {answer}"),
        }
    }

    /// The answer to a command that has no arguments.
    pub fn query(&mut self, name: &str) -> Value {
        self.command(name, &json!({}))
    }

    /// When an event was sent last, if it has been so far: seconds since 1970.
    pub fn last(&mut self, event: &str) -> Option<f64> {
        // QEMU sends pending events before the answer to the next command.
        self.query("query-status");
        let last = self.events.iter().rfind(|told| told["event"] == event)?;
        let time = &last["timestamp"];
        let [seconds, micros] = ["seconds", "microseconds"].map(|unit| time[unit].as_f64());
        Some(seconds.expect("seconds") + micros.expect("microseconds") / 1e6)
    }

    fn ask(&mut self, name: &str, arguments: &Value) -> Result<Value, String> {
        if self.stream.is_none() {
            self.connect();
        }
        let command = json!({ "execute": name, "arguments": arguments });
        let stream = self.stream.as_mut().expect("connected").get_mut();
        writeln!(stream, "{command}").expect("QEMU's monitor");
        loop {
            let mut told = self.line();
            if told.get("event").is_some() {
                self.events.push(told);
            } else if let Some(error) = told.get("error") {
                return Err(error["desc"].as_str().unwrap_or_default().to_owned());
            } else {
                return Ok(told["return"].take());
            }
        }
    }

    fn connect(&mut self) {
        let mut stream = None;
        wait_for("QEMU makes its monitor", 30, || {
            stream = UnixStream::connect(&self.path).ok();
            stream.is_some()
        });
        let stream = stream.expect("monitor");
        stream.set_read_timeout(Some(TIMEOUT)).expect("timeout");
        self.stream = Some(BufReader::new(stream));
        self.line();
        self.query("qmp_capabilities");
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        let stream = self.stream.as_mut().expect("connected");
        stream.read_line(&mut line).expect("QEMU's monitor");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }
}
