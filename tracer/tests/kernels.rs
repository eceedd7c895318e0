//! What tracer finds in the BTF of kernels that the tests need not boot: which programs can run
//! there, where the fields are, what the drop reasons are called. The fixtures and where they come
//! from are in `btf/`; what is expected is in `snapshots/`, one file a kernel.

use std::{fmt::Write as _, fs, path::PathBuf};

use tracer::kernel::{btf::Btf, features::PROGRAMS, offsets::Offsets, reasons::Reasons};
use tracer_common::Hook;

/// The fixtures, by kernel and architecture.
fn fixtures() -> Vec<(String, PathBuf)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/btf");
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "btf"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().into(), path))
        .collect();
    found.sort();
    found
}

/// All that the resolver says of a kernel, as a person reads it.
fn report(btf: &Btf) -> String {
    let offsets = Offsets::resolve(btf);
    let mut text = String::new();
    for hook in Hook::ALL {
        let name = hook.name();
        match offsets.why_not(hook) {
            None => writeln!(text, "hook {name}: every field is there"),
            Some(why) => writeln!(text, "hook {name} cannot run: {why}"),
        }
        .unwrap();
    }
    let features = &offsets.features;
    for program in PROGRAMS {
        if let Some(why) = features.why_not(program.program) {
            writeln!(text, "program {} cannot run: {why}", program.program).unwrap();
        }
    }
    writeln!(
        text,
        "drop reasons: {}; cookie from the making of a namespace: {}",
        features.drop_reasons, features.net_cookie
    )
    .unwrap();
    let functions: Vec<&str> = features.functions().collect();
    writeln!(text, "functions: {}", functions.join(" ")).unwrap();
    let reasons = Reasons::resolve(btf)
        .unwrap_or_default()
        .names_of_failures();
    for (number, name) in reasons {
        writeln!(text, "reason {number} {name}").unwrap();
    }
    let mut globals = offsets.globals;
    globals.sort_unstable();
    for (global, value) in globals {
        match value {
            u32::MAX => writeln!(text, "{global} absent"),
            value => writeln!(text, "{global} {value}"),
        }
        .unwrap();
    }
    text
}

#[test]
fn every_kernel_is_understood() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 12, "fixtures are missing: {fixtures:?}");
    for (kernel, path) in fixtures {
        let btf = Btf::open(&path).unwrap();
        insta::assert_snapshot!(kernel, report(&btf));
    }
}
