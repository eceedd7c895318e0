//! What bpf-linker is told.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // LLVM leaves the zeroing of a structure to a call of `memset`, which goes byte by byte, when it is to
    // copy memory in order; without that it copies large structures through the stack. The verifier walked
    // through these calls for a third of its time.
    println!("cargo::rustc-link-arg-bins=--llvm-args=-max-store-memset=64");
}
