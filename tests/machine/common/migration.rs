//! Moving a running guest: to another QEMU, to a file, and back.

use std::path::Path;

use serde_json::{Value, json};

use super::{Bed, Guest, GuestSpec, wait_for};

/// How long a migration may take; it takes one second on an idle machine.
const SECONDS: u64 = 120;

/// A migration that was completed.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// QEMU's own figure, ms.
    pub downtime: u64,
    /// The time when the source's QEMU had stopped the guest: seconds since 1970.
    pub stopped: f64,
    /// The time when the destination's QEMU resumed it.
    pub resumed: f64,
}

/// A migration that failed: the guest continues at the source.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The output of the destination's QEMU, where it has ended.
    pub qemu: String,
    /// The time when the guest had been stopped, if it ever was.
    pub stopped: Option<f64>,
    /// The time when it resumed at the source.
    pub resumed: Option<f64>,
}

impl Guest {
    /// Moves to a QEMU that waits for it on another host, and stays there: the one here ends.
    pub fn move_into(&mut self, mut there: Self, host: &Bed) -> Migration {
        self.begin(&mut there, host);
        self.arrive(there)
    }

    /// Waits until it has arrived where it began to move to; the QEMU here ends.
    pub fn arrive(&mut self, mut there: Self) -> Migration {
        let answer = self.outcome();
        assert_eq!(answer["status"], "completed", "{answer}\n{}", there.log());
        there.wait_running();
        let migration = Migration {
            downtime: answer["downtime"].as_u64().expect("downtime"),
            stopped: self.monitor().last("STOP").expect("the source stopped"),
            resumed: there.monitor().last("RESUME").expect("the destination goes on"),
        };
        *self = there;
        migration
    }

    /// Tries to move to a QEMU of this specification on another host, which must fail there.
    pub fn fail_to_move(&mut self, host: &Bed, spec: &GuestSpec) -> Refused {
        let mut there = Self::await_arrival(host, spec);
        self.begin(&mut there, host);
        let answer = self.outcome();
        assert_eq!(answer["status"], "failed", "{answer}\n{}", there.log());
        self.wait_running();
        let [stopped, resumed] = ["STOP", "RESUME"].map(|event| self.monitor().last(event));
        Refused { qemu: there.gave_up(), stopped, resumed }
    }

    /// Begins to move; [`arrive`](Self::arrive) or [`outcome`](Self::outcome) wait for the end.
    pub fn begin(&mut self, there: &mut Self, host: &Bed) {
        // The source then waits for the destination's answer, and continues if that is no.
        for guest in [&mut *self, &mut *there] {
            guest.set_capability("return-path", true);
        }
        let uri = format!("unix:{}", host.path("migration").display());
        there.monitor().command("migrate-incoming", &json!({ "uri": uri }));
        self.monitor().command("migrate", &json!({ "uri": uri }));
    }

    /// Waits until a migration has ended; QEMU's report of it.
    pub fn outcome(&mut self) -> Value {
        self.wait_migration(&["completed", "failed", "cancelled"])
    }

    /// Waits until a migration has one of these states; QEMU's report of it.
    pub fn wait_migration(&mut self, states: &[&str]) -> Value {
        let mut answer = Value::Null;
        wait_for(&format!("a migration is {states:?}"), SECONDS, || {
            answer = self.monitor().query("query-migrate");
            answer["status"].as_str().is_some_and(|status| states.contains(&status))
        });
        answer
    }

    /// Saves the guest to a file; its QEMU does nothing more then.
    pub fn save(&mut self, file: &Path) {
        self.set_capability("return-path", false);
        let uri = format!("exec:cat >{}", file.display());
        self.monitor().command("migrate", &json!({ "uri": uri }));
        let answer = self.outcome();
        assert_eq!(answer["status"], "completed", "{answer}");
    }

    /// Brings a guest back from its file.
    pub fn restore(bed: &Bed, spec: &GuestSpec, file: &Path) -> Self {
        let mut guest = Self::await_arrival(bed, spec);
        let uri = format!("exec:cat {}", file.display());
        guest.monitor().command("migrate-incoming", &json!({ "uri": uri }));
        guest.wait_running();
        guest
    }

    /// Waits until its virtual processors run.
    pub fn wait_running(&mut self) {
        wait_for("the guest goes on", SECONDS, || {
            self.monitor().query("query-status")["status"] == "running"
        });
    }

    /// Switches a capability of QEMU's migration.
    pub fn set_capability(&mut self, name: &str, on: bool) {
        let capabilities = json!([{ "capability": name, "state": on }]);
        let arguments = json!({ "capabilities": capabilities });
        self.monitor().command("migrate-set-capabilities", &arguments);
    }
}
