//! What the machines of the architectures differ in.

use anyhow::{Result, bail};

use crate::{arch::Arch, setup::Tool};

/// A machine as QEMU makes it, and as its kernel sees it.
#[derive(Debug)]
pub struct Board {
    /// What makes it.
    pub qemu: Tool,
    /// What runs a single program of this architecture on a host of another one.
    pub translator: Tool,
    /// Which of those that this QEMU can make.
    pub machine: &'static str,
    /// The processor, where it is emulated.
    pub processor: &'static str,
    /// What makes the second serial line, of the character device `tests`.
    pub line: [&'static str; 2],
    /// That line in the guest.
    pub tests: &'static str,
    /// The first one and what else the kernel is told.
    pub parameters: &'static str,
}

const AMD64: Board = Board {
    qemu: Tool {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
    },
    translator: Tool {
        program: "qemu-x86_64",
        package: "qemu-user",
    },
    machine: "pc",
    processor: "max",
    line: ["-serial", "chardev:tests"],
    tests: "/dev/ttyS1",
    // What looks for broken timers at boot stops where an emulated machine is slow.
    parameters: "console=ttyS0 mitigations=off tsc=reliable no_timer_check",
};

const ARM64: Board = Board {
    qemu: Tool {
        program: "qemu-system-aarch64",
        package: "qemu-system-arm",
    },
    translator: Tool {
        program: "qemu-aarch64",
        package: "qemu-user",
    },
    machine: "virt",
    // Pointers are signed with the specification's cipher unless QEMU's own is asked for, which is
    // much faster to emulate (its docs/system/arm/cpu-features.rst).
    processor: "max,pauth-impdef=on",
    // The machine's own second line is for the secure world.
    line: ["-device", "pci-serial,chardev=tests"],
    tests: "/dev/ttyS0",
    parameters: "console=ttyAMA0",
};

impl Board {
    pub fn of(arch: Arch) -> Result<&'static Self> {
        match arch {
            Arch::AMD64 => Ok(&AMD64),
            Arch::ARM64 => Ok(&ARM64),
            _ => bail!("no machine is known with which a kernel for {arch} boots"),
        }
    }
}
