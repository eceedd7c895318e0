//! Whether this machine's hardware virtualisation works.

use std::{fs, fs::File, io::ErrorKind, path::Path, process::Command, time::Duration};

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
        if layers.arch != Arch::HOST {
            return Ok(Self::Tcg);
        }
        if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
            if error.kind() == ErrorKind::PermissionDenied {
                sh::step(
                    "this user has no right to /dev/kvm, and machines are emulated, which takes ten times as long; \
                     `sudo adduser $USER kvm` and a new login give it",
                );
            }
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
        let accel = match boots(&mut qemu)? {
            Boot::Done => Self::Kvm,
            Boot::Hangs => {
                sh::step(
                    "/dev/kvm is here, and a guest does not boot with it: machines are emulated",
                );
                Self::Tcg
            }
            // That may be another thing's fault, so it is tried again the next time.
            Boot::Ended(why) => {
                sh::step(format!(
                    "a guest with /dev/kvm did not come to its first word: machines are emulated; {why}"
                ));
                return Ok(Self::Tcg);
            }
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

/// How far a guest came.
#[derive(Debug, PartialEq, Eq)]
enum Boot {
    Done,
    /// QEMU lives, and the guest is silent or too slow.
    Hangs,
    /// QEMU ended before, and why.
    Ended(String),
}

/// The guest's `/init` ends the machine when it sees the word `tracer.probe`.
fn boots(qemu: &mut Command) -> Result<Boot> {
    let mut machine = machine::start(qemu)?;
    let mut said = String::new();
    while let Some(left) = LIMIT.checked_sub(machine.age()) {
        match machine.more(left) {
            Ok(Some(text)) => said += &text,
            Ok(None) => {
                let why = machine.failure()?;
                return Ok(Boot::Ended(
                    why.unwrap_or_else(|| "the guest ended".to_owned()),
                ));
            }
            Err(_) => break,
        }
        if said.contains("tracer-vm: probe") {
            return Ok(Boot::Done);
        }
    }
    Ok(Boot::Hangs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qemu_that_ends_does_not_hang() {
        let boot = |script| boots(Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!(boot("echo tracer-vm: probe; sleep 60"), Boot::Done);
        assert_eq!(
            boot("echo no KVM >&2; exit 1"),
            Boot::Ended("QEMU ended (exit status: 1): no KVM".to_owned())
        );
        assert_eq!(boot("echo boot"), Boot::Ended("the guest ended".to_owned()));
    }
}
