//! The state folder (`--state-dir`): a directory on a bpf file system that one agent holds, and what
//! outlives that agent in it.
//!
//! ```text
//! DIR/schema-N/maps/NAME            the maps: what was counted, and what is under way
//! DIR/schema-N/links/BUILD/NAME     the attachments: counting goes on when an agent ends
//! DIR/schema-N/programs/BUILD/NAME  the programs: the next agent of the same build takes them over
//! DIR/schema-N/memory               whose it is (`engine/memory.rs`), see [`blob`]
//! DIR/resets                        how often any of it was of no use
//! DIR/going-N                       what is being removed
//! ```
//!
//! `N` is [`SCHEMA`]. `BUILD` stands for the object and all that it was told: an agent of another build or
//! with other flags takes the maps over and has its own programs count in the others' place. All of it
//! stays until `tracer agent --detach-all`, or the machine's end.

pub mod blob;
mod fit;

use std::{
    fmt::Write as _,
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    fs::{FlockOperation, flock, major, minor, statfs},
    mount::{MountFlags, mount},
    process::geteuid,
};
use tracer_common::SCHEMA;

/// Where the system has its bpf file system.
pub const BPFFS: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// What the folders of tracer's own are called: others may pin something beside them.
const SCHEMA_PREFIX: &str = "schema-";
/// What is being removed is called so: a name that an agent which is killed meanwhile leaves halfway is none
/// that the next goes on with.
const GOING_PREFIX: &str = "going-";
/// What counts the resets.
const RESETS: &str = "resets";

/// The folder, held for as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    folder: PathBuf,
    /// How often there was state that could not be used.
    resets: u64,
    _lock: File,
}

/// Where one build pins its programs and their attachments.
#[derive(Clone, Debug)]
pub struct Pins {
    folder: PathBuf,
    build: String,
}

impl StateDir {
    /// Makes the folder, mounting a bpf file system at `/sys/fs/bpf` where none is, and takes it.
    /// `None` where it may not mount one: the agent goes on without.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        if path.starts_with(BPFFS)
            && !is_bpffs(Path::new(BPFFS))
            && let Err(error) = mount("bpf", BPFFS, "bpf", MountFlags::empty(), c"mode=0700")
        {
            tracing::warn!(
                "going on without the state folder {}: cannot mount a bpf file system at {BPFFS}: {error}",
                path.display()
            );
            return Ok(None);
        }
        let mut folders = fs::DirBuilder::new();
        // Nobody else may change what is counted, or hold the lock.
        folders.recursive(true).mode(0o700);
        folders.create(path).with_context(|| {
            format!(
                "cannot make the state folder {}: use a folder that can be written, or --state-dir none",
                path.display()
            )
        })?;
        if !is_bpffs(path) {
            bail!(
                "the state folder {} is not on a bpf file system: use a folder below {BPFFS}, or --state-dir none",
                path.display()
            );
        }
        if let Some(why) = unsafe_folder(&fs::metadata(path)?) {
            bail!("the state folder {} is {why}", path.display());
        }
        let lock = take(path)?;
        let mut state = Self {
            root: path.to_owned(),
            folder: path.join(format!("{SCHEMA_PREFIX}{SCHEMA}")),
            resets: 0,
            _lock: lock,
        };
        state.forget_what_does_not_fit(path)?;
        for folder in ["maps", "links", "programs"] {
            let folder = state.folder.join(folder);
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        Ok(Some(state))
    }

    /// Begins anew where another schema was at work, or where a map is not what it should be.
    fn forget_what_does_not_fit(&mut self, path: &Path) -> Result<()> {
        sweep(path)?;
        let read = blob::read(&path.join(RESETS)).unwrap_or_default();
        let read = read.and_then(|bytes| Some(u64::from_ne_bytes(bytes.try_into().ok()?)));
        self.resets = read.unwrap_or_default();
        let mut why: Vec<String> = Vec::new();
        for entry in named(path, SCHEMA_PREFIX)? {
            if entry != self.folder {
                why.push(format!("{} is of another version", entry.display()));
                discard(&entry)?;
            }
        }
        if let Some(misfit) = fit::misfit(&self.maps())? {
            why.push(misfit);
            discard(&self.folder)?;
        }
        if !why.is_empty() {
            self.note_reset();
            tracing::warn!(
                "the counters begin anew, for what the state folder {} holds is of no use to this version: {}",
                path.display(),
                why.join("; ")
            );
        }
        Ok(())
    }

    /// How often there was state that could not be used, in this folder's life.
    pub fn resets(&self) -> u64 {
        self.resets
    }

    /// Some of it could not be used.
    pub fn note_reset(&mut self) {
        self.resets += 1;
        if let Err(error) = blob::write(&self.root.join(RESETS), &self.resets.to_ne_bytes()) {
            tracing::error!("the next agent will not know of this reset: {error:#}");
        }
    }

    /// The maps' folder.
    pub fn maps(&self) -> PathBuf {
        self.folder.join("maps")
    }

    /// The maps that are pinned, by name.
    pub fn map_names() -> Result<Vec<String>> {
        fit::names()
    }

    /// Where the build with this fingerprint has its programs. Those that are there count into the maps
    /// that were pinned: where somebody has removed one of these, the programs go too.
    pub fn pins(&self, fingerprint: u64) -> Result<Pins> {
        let pins = Pins {
            folder: self.folder.clone(),
            build: format!("{fingerprint:016x}"),
        };
        if let Some(name) = fit::missing(&self.maps())? {
            for kind in ["links", "programs"] {
                let folder = pins.folder.join(kind).join(&pins.build);
                if folder.exists() {
                    tracing::warn!(
                        "{kind} begin anew, for there is no map {name} in the state folder"
                    );
                    remove(&folder)?;
                }
            }
        }
        for kind in ["links", "programs"] {
            let folder = pins.folder.join(kind).join(&pins.build);
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        Ok(pins)
    }

    /// What the last agent remembered, if anything.
    pub fn memory(&self) -> Result<Option<Vec<u8>>> {
        blob::read(&self.folder.join("memory"))
    }

    /// For the next agent to remember.
    pub fn remember(&self, memory: &[u8]) -> Result<()> {
        blob::write(&self.folder.join("memory"), memory)
    }

    /// Takes everything out of the kernel that any agent left there. `None`: there was nothing.
    pub fn detach_all(path: &Path) -> Result<Option<Contents>> {
        if !path.exists() {
            return Ok(None);
        }
        if !is_bpffs(path) {
            bail!(
                "{} is not on a bpf file system: no agent has its state there",
                path.display()
            );
        }
        let _lock = take(path)?;
        let contents = Contents::of(path)?;
        for entry in named(path, SCHEMA_PREFIX)? {
            discard(&entry)?;
        }
        sweep(path)?;
        for name in [RESETS, "resets_new"] {
            remove(&path.join(name))?;
        }
        if entries(path)?.is_empty() {
            fs::remove_dir(path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(Some(contents))
    }
}

/// Why a folder is not to be trusted, if it is not.
pub fn unsafe_folder(found: &fs::Metadata) -> Option<&'static str> {
    (found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0)
        .then_some("another user's, or others may write in it: remove it, or use another one")
}

/// What a state folder holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Contents {
    /// The version of what was counted; `None`: nothing was.
    pub schema: Option<u32>,
    /// Maps.
    pub maps: usize,
    /// Attachments: where there are any, the kernel counts.
    pub links: usize,
}

impl Contents {
    /// Looks into a folder, which needs not be one's own.
    pub fn of(path: &Path) -> Result<Self> {
        let mut contents = Self::default();
        for entry in named(path, SCHEMA_PREFIX)? {
            let name = entry.file_name().unwrap_or_default().to_string_lossy();
            contents.schema = name
                .strip_prefix(SCHEMA_PREFIX)
                .and_then(|n| n.parse().ok());
            contents.maps += entries(&entry.join("maps"))?.len();
            for build in entries(&entry.join("links"))? {
                contents.links += entries(&build)?.len();
            }
        }
        Ok(contents)
    }
}

impl Pins {
    /// Where a program is pinned.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join("programs").join(&self.build).join(name)
    }

    /// Where its attachment is.
    pub fn link(&self, name: &str) -> PathBuf {
        self.folder.join("links").join(&self.build).join(name)
    }

    /// Takes away what other builds have left, once one's own programs are at work.
    pub fn relieve_all(&self) -> Result<()> {
        for kind in ["links", "programs"] {
            for build in entries(&self.folder.join(kind))? {
                if build.file_name().is_none_or(|name| *name != *self.build) {
                    remove(&build)?;
                }
            }
        }
        Ok(())
    }

    /// Takes a program and its attachment out, unless the kernel has none of it.
    pub fn unpin(&self, name: &str) -> io::Result<()> {
        for path in [self.link(name), self.program(name)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Locks the folder.
fn take(path: &Path) -> Result<File> {
    let folder = File::open(path)
        .with_context(|| format!("cannot open the state folder {}", path.display()))?;
    if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut who = String::from("another agent");
        if let Some(pid) = holder(path) {
            let _ = write!(who, ", process {pid},");
        }
        bail!(
            "{who} holds the state folder {}: stop it, or give this one its own --state-dir and --api",
            path.display()
        );
    }
    Ok(folder)
}

/// The process that has locked a folder, where it is of this pid namespace.
pub fn holder(path: &Path) -> Option<u32> {
    let folder = fs::metadata(path).ok()?;
    let (major, minor) = (major(folder.dev()), minor(folder.dev()));
    find_holder(
        &fs::read_to_string("/proc/locks").ok()?,
        &format!("{major:02x}:{minor:02x}:{}", folder.ino()),
    )
}

/// `1: FLOCK  ADVISORY  WRITE 4711 00:1f:12345 0 EOF`; who waits for it has `->` behind the number
/// (fs/locks.c, `lock_get_status`).
pub(crate) fn find_holder(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, _, pid, on, ..] = fields.as_slice() else {
            return None;
        };
        (*on == file).then(|| pid.parse().ok()).flatten()
    })
}

/// What a folder holds; nothing where it is not there.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.with_context(|| format!("cannot read the folder {}", folder.display()))?,
    };
    read.map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()
        .with_context(|| format!("cannot read the folder {}", folder.display()))
}

/// Entries of a folder whose name begins so.
fn named(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut found = entries(folder)?;
    found.retain(|entry| {
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(prefix)
    });
    Ok(found)
}

/// Removes a folder of the state folder in one step, as seen by the next agent.
fn discard(folder: &Path) -> Result<()> {
    let going = (0..=u16::MAX)
        .map(|n| folder.with_file_name(format!("{GOING_PREFIX}{n}")))
        .find(|path| !path.exists())
        .unwrap_or_default();
    match fs::rename(folder, &going) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot rename {}", folder.display())),
        Ok(()) => remove(&going),
    }
}

/// Ends what an agent that was killed began to remove.
fn sweep(folder: &Path) -> Result<()> {
    named(folder, GOING_PREFIX)?
        .iter()
        .try_for_each(|entry| remove(entry))
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Is this on a bpf file system?
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.f_type as u64 == BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_who_has_the_lock_and_not_who_waits() {
        let locks = "1: POSIX  ADVISORY  WRITE 10 00:1f:7 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 11 00:1f:8 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 12 00:1f:7 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 13 00:1f:7 0 EOF\n";
        assert_eq!(find_holder(locks, "00:1f:7"), Some(12));
        assert_eq!(find_holder(locks, "00:1f:9"), None);
    }
}
