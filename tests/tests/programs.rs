//! The eBPF programs themselves, as they go into the binary.

use tests::process::tracer_path;
use tests::stack::{self, LIMIT};

/// Kernels before 6.9 add frames up with more rounding: what loads here might not load there.
#[test]
fn no_program_takes_more_stack_than_older_kernels_give() {
    let bytes = std::fs::read(tracer_path()).expect("tracer is built");
    let stacks = stack::of_programs(&bytes).expect("the binary holds the programs");
    assert!(stacks.len() > 10, "{stacks:?}");
    for (program, stack) in stacks {
        eprintln!(
            "{program}: {} bytes, {} before 6.9",
            stack.bytes, stack.before_6_9
        );
        assert!(stack.before_6_9 <= LIMIT, "{program}: {stack:?}");
    }
}
