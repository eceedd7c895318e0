//! Whether this machine's hardware virtualisation works.

use std::{fs, fs::File, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};

use super::{kernel::Kernel, layer::Layers, machine};
use crate::{arch::Arch, sh};

/// How QEMU runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// By translation: some ten times slower.
    Tcg,
}

/// A guest says its first word within two seconds of starting, where the processor runs it.
const LIMIT: Duration = Duration::from_secs(10);

impl Accel {
    /// The fastest that works. `/dev/kvm` may be there and hang its guests, as inside a machine that
    /// is a guest itself; so a guest is booted once for each boot of this machine.
    pub fn find(kernel: &Kernel, initrd: &Path, layers: &Layers) -> Result<Self> {
        if layers.arch != Arch::HOST
            || File::options()
                .read(true)
                .write(true)
                .open("/dev/kvm")
                .is_err()
        {
            return Ok(Self::Tcg);
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context("failed to read this boot's id")?;
        let path = super::cache()?.join("kvm");
        let known = fs::read_to_string(&path).unwrap_or_default();
        if let Some(verdict) = known.strip_prefix(&boot) {
            return Ok(Self::of_verdict(verdict));
        }
        let mut qemu = machine::qemu(layers, Self::Kvm, kernel, initrd, "tracer.probe")?;
        qemu.args(["-serial", "stdio"]);
        let accel = if boots(&mut qemu)? {
            Self::Kvm
        } else {
            sh::step("/dev/kvm is here, and a guest does not boot with it: machines are emulated");
            Self::Tcg
        };
        fs::write(&path, format!("{boot}{}", accel.verdict()))
            .with_context(|| format!("failed to write {}", path.display()))?;
        Ok(accel)
    }

    /// As QEMU wants it, with the processor of that name where it emulates one.
    pub fn arguments(self, emulated: &str) -> [&str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Both processors in turn: with a thread for each, one may trip over code that the kernel patches on the
            // other, as it does for each hook that comes or goes ("Oops: int3").
            Self::Tcg => ["-accel", "tcg,thread=single", "-cpu", emulated],
        }
    }

    fn verdict(self) -> &'static str {
        match self {
            Self::Kvm => "works\n",
            Self::Tcg => "hangs\n",
        }
    }

    fn of_verdict(verdict: &str) -> Self {
        if verdict == Self::Kvm.verdict() {
            Self::Kvm
        } else {
            Self::Tcg
        }
    }
}

/// The guest's `/init` ends the machine when it sees the word `tracer.probe`.
fn boots(qemu: &mut Command) -> Result<bool> {
    let mut machine = machine::start(qemu)?;
    let mut said = String::new();
    while let Ok(Some(text)) = machine.more(LIMIT) {
        said += &text;
        if said.contains("tracer-vm: probe") {
            return Ok(true);
        }
        if machine.age() > LIMIT {
            break;
        }
    }
    Ok(false)
}
