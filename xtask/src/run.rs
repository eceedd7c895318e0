//! `cargo xtask run`: builds and then becomes tracer.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{arch::Arch, build, setup, sh};

/// A DNS query for example.com to a loopback address where nobody listens; bash alone can send it.
const UNANSWERED: &str =
    r"printf '\0\1\1\0\0\1\0\0\0\0\0\0\7example\3com\0\0\1\0\1' >/dev/udp/127.0.0.2/53";

pub fn run(mut args: Vec<String>) -> Result<()> {
    build::build(&setup::ensure(&[])?, Arch::HOST)?;
    if args.is_empty() {
        args.push("agent".to_owned());
    }
    let binary = build::binary(Arch::HOST);
    let mut tracer = Command::new(&binary);
    tracer.args(&args);
    if !sh::is_root()? {
        bail!(
            "loading eBPF programs needs root; the build is done, run `sudo {}`",
            sh::shown(&tracer)
        );
    }
    if args[0] == "agent" {
        sh::step("metrics: curl http://127.0.0.1:9773/metrics (unless --listen says otherwise)");
        sh::step(format!(
            "failures as they happen: {} events",
            binary.display()
        ));
        sh::step(format!(
            "to see one, ask where nobody answers: {UNANSWERED}"
        ));
    }
    // In the place of this process, so that signals reach tracer.
    let error = tracer.exec();
    Err(error).with_context(|| format!("failed to start {}", binary.display()))
}
