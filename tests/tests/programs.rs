//! The eBPF programs themselves, as they go into the binary and as the running kernel takes them.

use tests::doctor::Doctor;
use tests::host::HostLock;
use tests::process::tracer_path;
use tests::stack::{self, LIMIT};
use tests::verified::{self, Instructions};

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

/// Of all programs that tracer loads on this kernel, by the doctor's word; `without` names what it does without.
fn instructions(without: &str) -> Instructions {
    let doctor = Doctor::ask(&["env", &format!("TRACER_WITHOUT={without}")], &[]);
    let mut found = Instructions::new();
    for hook in doctor.json["hooks"].as_array().expect("it is a list") {
        let programs: Instructions = serde_json::from_value(hook["verified_instructions"].clone())
            .unwrap_or_else(|e| panic!("{e}: {hook}"));
        found.extend(programs);
    }
    found
}

#[test]
fn verified_instructions_are_near_what_is_recorded() {
    let _lock = HostLock::take();
    verified::check("", &instructions(""));
}

/// What stands in on older kernels, and where the kernel's functions cannot be found, grows by itself.
#[test]
fn verified_instructions_of_stand_ins_are_near_what_is_recorded() {
    const NEW: &str = "bpf_loop,bpf_for_each_map_elem,cmpxchg,drop_reasons,___neigh_create";
    let _lock = HostLock::take();
    let found = instructions(NEW);
    let all = ["walk_round", "dns_age_one", "tcp_age_one", "work_start"];
    assert!(
        found.is_empty() || all.iter().all(|name| found.contains_key(*name)),
        "{found:?}"
    );
    verified::check(NEW, &found);
}

/// From 5.13 to 5.16 there are compare-and-exchange, global functions and `bpf_for_each_map_elem`, and what came later is
/// not: programs that no other mixture loads together.
#[test]
fn verified_instructions_of_the_mixture_in_between_are_near_what_is_recorded() {
    const NEW: &str = "bpf_loop,drop_reasons";
    let _lock = HostLock::take();
    let found = instructions(NEW);
    let has = |name: &str| found.contains_key(name);
    // Older kernels lack the one helper as well.
    if has("dns_age") {
        assert!(has("walk_round") && has("tcp_age"), "{found:?}");
    }
    assert!(!has("walk") && !has("conntrack_begin"), "{found:?}");
    verified::check(NEW, &found);
}
