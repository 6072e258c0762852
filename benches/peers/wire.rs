//! The far end of the wire: an XDP program that counts, and drops or reflects.

use std::path::PathBuf;
use std::process::Command;

use libbpf_rs::{Link, MapCore as _, MapFlags, Object, ObjectBuilder};

use crate::common::{Bed, repository, run};

/// The fate of a frame at the far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FarEnd {
    /// Counted and dropped.
    Sink,
    /// Counted and sent back with its addresses exchanged.
    Reflect,
}

/// The program on the far end of the bed's first uplink; detached on drop.
pub struct Wire {
    object: Object,
    _link: Link,
}

impl Wire {
    /// Compiles, loads and attaches it.
    pub fn attach(bed: &Bed, far_end: FarEnd) -> Self {
        let object = compile(bed);
        let path = format!("/sys/class/net/{}/ifindex", bed.uplinks[0].peer);
        let index = bed.wire.run(&["cat", &path]).trim().parse().expect("an interface index");
        let name = match far_end {
            FarEnd::Sink => "sink",
            FarEnd::Reflect => "reflect",
        };
        bed.wire.enter(|| {
            let loaded = ObjectBuilder::default().open_file(object).and_then(|open| open.load());
            let object = loaded.expect("the wire's XDP program loads");
            let program = object.progs_mut().find(|program| program.name() == name);
            let attached = program.expect("the program is there").attach_xdp(index);
            let link = attached.expect("the wire's XDP program attaches");
            Self { object, _link: link }
        })
    }

    /// Frames that arrived at the far end.
    pub fn frames(&self) -> u64 {
        let map = self.object.maps().find(|map| map.name() == "frames").expect("the map is there");
        let values = map.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY).expect("a map look-up");
        let values = values.expect("the entry is there");
        values.iter().map(|value| u64::from_ne_bytes(value[..8].try_into().expect("8 bytes"))).sum()
    }
}

/// The program's object file.
pub fn compile(bed: &Bed) -> PathBuf {
    let object = bed.path("wire.o");
    // Debian keeps <asm/types.h> in the multiarch folder, which the bpf target does not search.
    let include = format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let mut clang = Command::new("clang");
    clang.args(["-O2", "-g", "-target", "bpf", "-Wall", "-Werror", &include, "-c"]);
    run(clang.arg(repository("benches/peers/wire.bpf.c")).arg("-o").arg(&object));
    object
}
