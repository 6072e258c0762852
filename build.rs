//! Compiles `bpf/redirect.bpf.c` and generates the Rust skeleton that loads it.

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "bpf/redirect.bpf.c";

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    let skeleton =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("redirect.skel.rs");
    // Debian keeps <asm/types.h> in the multiarch folder, which clang's bpf target does not search.
    let include = format!("-I/usr/include/{}-linux-gnu", env::consts::ARCH);
    SkeletonBuilder::new()
        .source(SOURCE)
        .clang_args([include, "-Wall".into(), "-Werror".into()])
        .build_and_generate(&skeleton)
        .expect("clang compiles the BPF program (scripts/setup installs clang and libbpf-dev)");
}
