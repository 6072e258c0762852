//! Compiles `bpf/*.bpf.c` and generates the Rust skeletons that load them.

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

const PROGRAMS: [&str; 2] = ["redirect", "host"];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // Debian keeps <asm/types.h> in the multiarch folder, which clang's bpf target does not search.
    let include = format!("-I/usr/include/{}-linux-gnu", env::consts::ARCH);
    for program in PROGRAMS {
        let source = format!("bpf/{program}.bpf.c");
        println!("cargo:rerun-if-changed={source}");
        SkeletonBuilder::new()
            .source(source)
            .clang_args([&include, "-Wall", "-Werror"])
            .build_and_generate(out.join(format!("{program}.skel.rs")))
            .expect("clang compiles the BPF program (scripts/setup installs clang and libbpf-dev)");
    }
}
