//! What bpf-linker is told.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // When LLVM is to copy memory in order, it leaves the zeroing of a structure to a call of `memset`, and
    // a copy of what may overlap to `memmove`, which both go byte by byte: the verifier walked through these
    // for a third of its time. (When not, it copies large structures through the stack.) Stores, at most.
    for limit in ["-max-store-memset=64", "-max-store-memmove=8"] {
        println!("cargo::rustc-link-arg-bins=--llvm-args={limit}");
    }
}
