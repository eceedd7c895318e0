//! The eBPF programs themselves, as they go into the binary and as the running kernel takes them.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Write as _;

use tests::doctor::Doctor;
use tests::host::HostLock;
use tests::kubernetes::repository;
use tests::process::tracer_path;
use tests::stack::{self, LIMIT};
use tests::verified::{self, Instructions};

/// What is recorded of each series of kernels.
const RECORDED: &str = "tests/verified.toml";

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

/// Of all programs but two of 50 instructions, which stand in where the kernel's functions cannot be found.
fn instructions() -> Instructions {
    let doctor = Doctor::ask(&[], &[]);
    let mut found = Instructions::new();
    for hook in doctor.json["hooks"].as_array().expect("it is a list") {
        let programs: Instructions = serde_json::from_value(hook["verified_instructions"].clone())
            .unwrap_or_else(|e| panic!("{e}: {hook}"));
        found.extend(programs);
    }
    found
}

/// Past the harness, which keeps what a test that passes says.
fn say(text: &str) {
    std::io::stderr()
        .write_all(text.as_bytes())
        .expect("stderr can be written");
}

#[test]
fn verified_instructions_are_near_what_is_recorded() {
    let _lock = HostLock::take();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("it can be read");
    let series = verified::series(release.trim(), env::consts::ARCH);
    let path = repository(RECORDED);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let recorded = verified::parse(&text).unwrap_or_else(|e| panic!("{RECORDED}: {e}"));
    let found = instructions();
    if found.is_empty() {
        say(&format!(
            "{release}: the kernel does not tell, as all before 5.16: nothing checked\n"
        ));
        return;
    }
    for (program, instructions) in &found {
        assert!(
            *instructions < verified::LIMIT / 2,
            "{program}: {instructions}"
        );
    }
    let section = verified::write(&BTreeMap::new(), &series, &found);
    if env::var_os("UPDATE").is_some() {
        let renewed = verified::write(&recorded, &series, &found);
        fs::write(&path, renewed).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        say(&format!("{RECORDED} has now:\n{section}"));
        return;
    }
    let Some(recorded) = recorded.get(&series) else {
        say(&format!(
            "{RECORDED} has nothing of {series}: only the limit was checked. It would be:\n{section}"
        ));
        return;
    };
    let differences = verified::differences(recorded, &found);
    assert!(
        differences.is_empty(),
        "on {series}, not what {RECORDED} has:\n{}\nIf it must be so, renew it (UPDATE=1):\n{section}",
        differences.join("\n")
    );
}
