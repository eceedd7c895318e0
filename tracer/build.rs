//! Puts the eBPF object into the binary. `cargo xtask build` makes it; a build without it ends in
//! one line that says so.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=TRACER_EBPF");
    let object = env::var_os("TRACER_EBPF").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../target/bpf/tracer-ebpf.o"
            ))
        },
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    let Ok(bytes) = fs::read(&object) else {
        println!("cargo::error=the eBPF object is not built: run `cargo xtask build`");
        return;
    };
    let Some(out) = env::var_os("OUT_DIR") else {
        println!("cargo::error=cargo sets no OUT_DIR");
        return;
    };
    if let Err(error) = fs::write(PathBuf::from(out).join("tracer-ebpf.o"), bytes) {
        println!("cargo::error=cannot write the eBPF object: {error}");
    }
}
