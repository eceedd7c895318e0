//! Programs that the machines need and the host lacks: QEMU, kmod, what the tests call. Their
//! packages and all that these depend on are unpacked into one folder of the user's cache and never
//! installed, so that no root is needed. The guests see that folder merged into the host's files.
//!
//! Guests of another architecture see one with all the programs that they run, down to the C library
//! and the shell, in that architecture; the host's are beneath, and do not start there.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{board::Board, stamp};
use crate::{
    apt::{self, Packages},
    arch::Arch,
    disk,
    setup::{Tool, unpacked},
    sh,
};

/// What makes and loads module lists, and what unpacks modules.
const HOST: &[Tool] = &[
    Tool {
        program: "kmod",
        package: "kmod",
    },
    Tool {
        program: "xz",
        package: "xz-utils",
    },
    Tool {
        program: "zstd",
        package: "zstd",
    },
];

/// A guest's first program, where it cannot take the host's.
const GUEST: &[Tool] = &[Tool {
    program: "busybox",
    package: "busybox-static",
}];

/// What each system has and no test names: for guests that cannot take the host's.
const SYSTEM: &[Tool] = &[
    Tool {
        program: "bash",
        package: "bash",
    },
    Tool {
        program: "dash",
        package: "dash",
    },
    Tool {
        program: "env",
        package: "coreutils",
    },
    Tool {
        program: "find",
        package: "findutils",
    },
    Tool {
        program: "grep",
        package: "grep",
    },
    Tool {
        program: "gzip",
        package: "gzip",
    },
    Tool {
        program: "kmod",
        package: "kmod",
    },
    Tool {
        program: "mawk",
        package: "mawk",
    },
    Tool {
        program: "mount",
        package: "mount",
    },
    Tool {
        program: "ping",
        package: "iputils-ping",
    },
    Tool {
        program: "sed",
        package: "sed",
    },
    Tool {
        program: "setpriv",
        package: "util-linux",
    },
    Tool {
        program: "sysctl",
        package: "procps",
    },
    Tool {
        program: "tar",
        package: "tar",
    },
];

/// What the machines of an architecture are made of.
#[derive(Debug)]
pub struct Layers {
    pub arch: Arch,
    /// What runs on the host.
    pub host: Layer,
    /// What the guests see above the host's files; the same where the architecture is.
    pub guest: Layer,
}

impl Layers {
    /// Finds the programs of the machines, and those named for the guests; fetches what is nowhere.
    pub fn ensure(arch: Arch, tools: &[Tool]) -> Result<Self> {
        let board = Board::of(arch)?;
        let host = host()?;
        if arch == Arch::HOST {
            host.ensure(&[&[board.qemu], HOST, tools])?;
            let guest = host.clone();
            return Ok(Self { arch, host, guest });
        }
        let guest = foreign(arch)?;
        host.ensure(&[&[board.qemu, board.translator], HOST])?;
        guest.ensure(&[GUEST, SYSTEM, tools])?;
        Ok(Self { arch, host, guest })
    }

    /// A guest's first program, which has no library to load.
    pub fn busybox(&self) -> Result<PathBuf> {
        if self.arch == Arch::HOST {
            return unpacked::busybox();
        }
        self.guest.find("busybox").context("there is no busybox")
    }

    /// Finds what runs a program of an architecture on the host, and the libraries for it; of this
    /// machine's own nothing is fetched.
    pub fn to_run(arch: Arch) -> Result<Self> {
        let host = host()?;
        if arch == Arch::HOST {
            let guest = host.clone();
            return Ok(Self { arch, host, guest });
        }
        let guest = foreign(arch)?;
        host.ensure(&[&[Board::of(arch)?.translator]])?;
        guest.ensure(&[SYSTEM])?;
        Ok(Self { arch, host, guest })
    }

    /// Where such a program would find a file, for whoever reads it here.
    pub fn file(&self, path: &str) -> PathBuf {
        if self.arch == Arch::HOST {
            return PathBuf::from(path);
        }
        self.guest.root.join(path.trim_start_matches('/'))
    }

    /// A command of a program for the guests that runs on the host: of another architecture's its
    /// instructions are translated. Not for what asks the kernel for more than any program does.
    pub fn run(&self, program: &Path) -> Result<Command> {
        if self.arch == Arch::HOST {
            return Ok(Command::new(program));
        }
        let mut command = self
            .host
            .command(Board::of(self.arch)?.translator.program)?;
        command.arg("-L").arg(self.guest.root()).arg(program);
        Ok(command)
    }

    /// Which libraries such a program loads, as `ldd` says it, which knows the machine's own alone.
    pub fn ldd(&self, program: &Path) -> Result<String> {
        if self.arch == Arch::HOST {
            return sh::output(Command::new("ldd").arg(program));
        }
        let mut list = self.run(program)?;
        // For the program's loader, where QEMU's own would heed it in QEMU's environment.
        sh::output(list.env("QEMU_SET_ENV", "LD_TRACE_LOADED_OBJECTS=1"))
    }
}

fn host() -> Result<Layer> {
    Ok(Layer {
        root: super::cache()?.join("layer"),
        packages: apt::HOST,
    })
}

/// Of another architecture.
fn foreign(arch: Arch) -> Result<Layer> {
    let cache = super::cache()?;
    Ok(Layer {
        root: cache.join(format!("layer-{arch}")),
        packages: Packages::foreign(arch, &cache.join(format!("apt-{arch}")))?,
    })
}

/// The folder, and what is in it.
#[derive(Clone, Debug)]
pub struct Layer {
    root: PathBuf,
    /// What it is filled from.
    packages: Packages,
}

impl Layer {
    /// Finds programs; fetches what is neither on the host nor in the folder.
    fn ensure(&self, tools: &[&[Tool]]) -> Result<()> {
        let release = stamp::release();
        let whole = || {
            let packages = stamp::packages(&self.stamp(), &release);
            packages.filter(|_| self.root.is_dir())
        };
        if whole().is_some() && self.missing(tools).is_empty() {
            return Ok(());
        }
        let _lock = unpacked::lock()?;
        // Another xtask may have fetched it meanwhile.
        let mut packages = if let Some(packages) = whole() {
            packages
        } else {
            unpacked::fresh(&self.root)?;
            BTreeSet::new()
        };
        let missing = self.missing(tools);
        if !missing.is_empty() {
            // It is back when all is there.
            stamp::remove(&self.stamp())?;
            self.add(&missing)?;
        }
        packages.extend(missing.into_iter().map(str::to_owned));
        stamp::write(&self.stamp(), &release, &packages)
    }

    /// The packages of those that are nowhere.
    fn missing(&self, tools: &[&[Tool]]) -> Vec<&'static str> {
        tools
            .iter()
            .copied()
            .flatten()
            .filter(|tool| self.find(tool.program).is_none())
            .map(|tool| tool.package)
            .collect()
    }

    /// Beside the folder, for guests see all that is in it.
    fn stamp(&self) -> PathBuf {
        self.root.with_extension("stamp")
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What its packages are taken from.
    pub fn packages(&self) -> &Packages {
        &self.packages
    }

    /// A program: the host's own first, if it could run.
    pub fn find(&self, program: &str) -> Option<PathBuf> {
        let own = if self.packages.is_foreign() {
            None
        } else {
            sh::which(program)
        };
        own.or_else(|| {
            ["usr/bin", "usr/sbin"]
                .map(|folder| self.root.join(folder).join(program))
                .into_iter()
                .find(|path| path.is_file())
        })
    }

    /// A command that finds its libraries in the folder.
    pub fn command(&self, program: &str) -> Result<Command> {
        let path = self
            .find(program)
            .with_context(|| format!("there is no {program}, although its package is unpacked"))?;
        let mut command = Command::new(&path);
        if path.starts_with(&self.root) {
            let libraries = self.libraries()?;
            command
                .env("LD_LIBRARY_PATH", &libraries)
                .env("QEMU_MODULE_DIR", libraries.join("qemu"));
        }
        Ok(command)
    }

    /// `depmod`, `modprobe`, …: one program, which goes by the name it is called by.
    pub fn kmod(&self, name: &str) -> Result<Command> {
        let mut command = self.command("kmod")?;
        command.arg0(name);
        Ok(command)
    }

    /// Where QEMU finds the machine's firmware, in the order in which it is to look.
    pub fn firmware(&self) -> impl Iterator<Item = PathBuf> {
        ["usr/share/seabios", "usr/share/qemu"]
            .map(|folder| self.root.join(folder))
            .into_iter()
            .filter(|folder| folder.is_dir())
    }

    /// Debian's folder of the machine's libraries, `usr/lib/x86_64-linux-gnu`.
    fn libraries(&self) -> Result<PathBuf> {
        let folder = self.root.join("usr/lib");
        fs::read_dir(&folder)
            .with_context(|| format!("failed to read {}", folder.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.to_string_lossy().ends_with("-linux-gnu"))
            .with_context(|| format!("{} has no libraries", folder.display()))
    }

    fn add(&self, packages: &[&str]) -> Result<()> {
        let names = packages.join(", ");
        if !apt::exists() {
            bail!("programs are missing; install {names}");
        }
        if self.packages.can_update()? {
            self.packages.update()?;
        }
        let wanted = self.packages.closure(packages)?;
        ensure!(
            !wanted.is_empty(),
            "{names}: installed, but a program is missing"
        );
        sh::step(format!(
            "unpacking {} packages ({names} and what they need) into {}",
            wanted.len(),
            self.root.display()
        ));
        let partial = self.root.with_extension("partial");
        unpacked::fresh(&partial)?;
        for archive in self.packages.download_all(&wanted, &partial)? {
            self.unpack(&archive)?;
        }
        disk::remove_dir_all(&partial)?;
        Ok(())
    }

    /// With `/bin` and the like as links into `/usr`, as the host has them: else the guest would see
    /// this folder's `/bin` in place of the host's.
    fn unpack(&self, archive: &Path) -> Result<()> {
        for name in ["bin", "sbin", "lib"] {
            disk::create_dir_all(self.root.join("usr").join(name))?;
            let link = self.root.join(name);
            if !link.is_symlink() {
                disk::symlink(Path::new("usr").join(name), link)?;
            }
        }
        let patterns: [&str; 0] = [];
        unpack(
            archive,
            &self.root,
            &["--keep-directory-symlink"],
            &patterns,
        )
    }
}

/// What a package holds.
pub fn names(archive: &Path) -> Result<Vec<String>> {
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("--contents").arg(archive);
    // `drwxr-xr-x root/root 0 2026-11-16 10:17 ./boot/`
    let listing = sh::output(&mut dpkg)?;
    Ok(listing
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .map(str::to_owned)
        .collect())
}

/// Unpacks a package's files into a folder: all, or those that match one of tar's patterns.
pub fn unpack(
    archive: &Path,
    folder: &Path,
    options: &[&str],
    patterns: &[impl AsRef<str>],
) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("failed to make {}", folder.display()))?;
    let mut dpkg = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(archive)
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to start dpkg-deb")?;
    let files = dpkg.stdout.take().context("dpkg-deb has no output")?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "--no-same-owner", "-C"])
        .arg(folder)
        .args(options)
        .args(patterns.iter().map(AsRef::as_ref))
        .stdin(files);
    let unpacked = sh::run(&mut tar);
    let status = dpkg.wait()?;
    unpacked
        .and_then(|()| {
            ensure!(status.success(), "dpkg-deb failed ({status})");
            Ok(())
        })
        .with_context(|| format!("failed to unpack {}", archive.display()))
}
