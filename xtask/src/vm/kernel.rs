//! Kernels to boot: the newest of a series that the distribution has, or a file of the user's.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
    time::UNIX_EPOCH,
};

use anyhow::{Context as _, Result, ensure};

use super::layer::{self, Layers};
use crate::{
    apt::{self, Packages},
    arch::Arch,
    disk,
    setup::unpacked,
    sh,
};

/// What is left out of a kernel's package: drivers of devices that no guest has, most of its size.
/// The rest is 60 MB (6.1) and 12 MB (6.12, compressed).
const KEPT: &[&str] = &[
    "./boot/vmlinuz-*",
    "./boot/config-*",
    "./lib/modules/*/modules.*",
    "./lib/modules/*/kernel/arch/*",
    "./lib/modules/*/kernel/crypto/*",
    "./lib/modules/*/kernel/fs/*",
    "./lib/modules/*/kernel/lib/*",
    "./lib/modules/*/kernel/net/*",
    "./lib/modules/*/kernel/drivers/block/*",
    "./lib/modules/*/kernel/drivers/char/*",
    "./lib/modules/*/kernel/drivers/virtio/*",
    "./lib/modules/*/kernel/drivers/net/veth.*",
    "./lib/modules/*/kernel/drivers/net/dummy.*",
    "./lib/modules/*/kernel/drivers/net/macvlan.*",
    "./lib/modules/*/kernel/drivers/net/ipvlan/*",
    "./lib/modules/*/kernel/drivers/net/vxlan*",
    "./lib/modules/*/kernel/drivers/net/tun.*",
    "./lib/modules/*/kernel/drivers/net/ifb.*",
];

/// What the user asks for: `6.1`, or a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The newest of a series, such as 6.1.
    Series(String),
    /// A package (`.deb`), a folder it was unpacked into, or a `vmlinuz` in one.
    File(PathBuf),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('.').collect();
        let number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if parts.len() == 2 && parts.iter().all(number) {
            return Ok(Self::Series(text.to_owned()));
        }
        let path = PathBuf::from(text);
        if path.exists() {
            Ok(Self::File(path))
        } else {
            Err("neither a series such as 6.1 nor a file that exists".to_owned())
        }
    }
}

/// One that can be booted.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its release, as `uname -r` says it.
    pub release: String,
    /// What QEMU boots.
    pub image: PathBuf,
    /// Its modules, with the lists of `depmod`.
    pub modules: PathBuf,
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.release.fmt(f)
    }
}

impl Kernel {
    /// Finds or fetches it.
    pub fn ensure(wanted: &Wanted, layers: &Layers) -> Result<Self> {
        match wanted {
            Wanted::Series(series) => newest(series, layers),
            Wanted::File(file) => of_file(file, layers),
        }
        .with_context(|| format!("no kernel for `--kernel {wanted}`"))
    }

    /// In a folder that holds `boot` and `lib/modules`, or `usr/lib/modules`.
    fn in_folder(folder: &Path, layers: &Layers) -> Result<Self> {
        let image = fs::read_dir(folder.join("boot"))
            .with_context(|| format!("{} has no folder boot", folder.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| release_of(path).is_some())
            .with_context(|| format!("{} has no boot/vmlinuz-RELEASE", folder.display()))?;
        Self::with_image(&image, folder, layers)
    }

    fn with_image(image: &Path, folder: &Path, layers: &Layers) -> Result<Self> {
        let release = release_of(image)
            .with_context(|| format!("{} is not called vmlinuz-RELEASE", image.display()))?;
        let base = ["", "usr"]
            .map(|base| folder.join(base))
            .into_iter()
            .find(|base| base.join("lib/modules").join(release).is_dir())
            .with_context(|| format!("{} has no lib/modules/{release}", folder.display()))?;
        let modules = base.join("lib/modules").join(release);
        // A package has none: its installation makes it.
        if !modules.join("modules.dep").is_file() {
            let mut depmod = layers.host.kmod("depmod")?;
            sh::quietly(depmod.arg("-b").arg(&base).arg(release))
                .context("the list of modules could not be made")?;
        }
        Ok(Self {
            release: release.to_owned(),
            image: image.to_owned(),
            modules,
        })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Series(series) => series.fmt(f),
            Self::File(file) => file.display().fmt(f),
        }
    }
}

/// `6.1.0-56-amd64` of `…/vmlinuz-6.1.0-56-amd64`.
fn release_of(image: &Path) -> Option<&str> {
    image.file_name()?.to_str()?.strip_prefix("vmlinuz-")
}

/// The newest package of a series; where none can be had, the newest that was fetched before.
fn newest(series: &str, layers: &Layers) -> Result<Kernel> {
    let _lock = unpacked::lock()?;
    let kernels = super::cache()?.join("kernels");
    let fetched: Vec<String> = fs::read_dir(&kernels)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.ends_with(".partial"))
        .collect();
    let name = match offered(series, &kernels, layers) {
        Ok(name) => name,
        Err(error) => {
            let Some(name) = choose(series, layers.arch, &fetched) else {
                return Err(error);
            };
            sh::step(format!("{error:#}: taking {name}, fetched before"));
            name.to_owned()
        }
    };
    // Only the newest of a series is kept.
    for old in &fetched {
        if *old != name && choose(series, layers.arch, std::slice::from_ref(old)).is_some() {
            disk::remove_dir_all(kernels.join(old))?;
        }
    }
    Kernel::in_folder(&kernels.join(name), layers)
}

/// The newest that the package lists have, fetched.
fn offered(series: &str, kernels: &Path, layers: &Layers) -> Result<String> {
    ensure!(apt::exists(), "there is no apt here to ask for kernels");
    let (arch, packages) = (layers.arch, layers.guest.packages());
    // The generic flavour: the cloud flavour has no 9P.
    let pattern = format!(
        "^linux-image-{}\\.[0-9].*-{arch}(-unsigned)?$",
        series.replace('.', "\\.")
    );
    let take = || {
        let names = packages.search(&pattern)?;
        let name = choose(series, arch, &names).with_context(|| {
            let remark = apt::remark();
            format!("the package lists have no linux-image-{series}.*-{arch}{remark}")
        })?;
        let folder = kernels.join(name);
        if !folder.is_dir() {
            fetch(name, &folder, packages)?;
        }
        Ok(name.to_owned())
    };
    match take() {
        // The lists may be missing, or name a package that has been replaced since.
        Err(_) if packages.can_update()? => {
            packages.update()?;
            take()
        }
        taken => taken,
    }
}

fn fetch(package: &str, folder: &Path, packages: &Packages) -> Result<()> {
    sh::step(format!("fetching the kernel {package}"));
    let partial = folder.with_added_extension("partial");
    unpacked::fresh(&partial)?;
    let archive = packages.download(package, &partial)?;
    let files = partial.join("files");
    unpack(&archive, &files)?;
    disk::rename(&files, folder)?;
    disk::remove_dir_all(&partial)?;
    Ok(())
}

fn unpack(archive: &Path, folder: &Path) -> Result<()> {
    // Not each kernel has each of them, and tar would complain.
    let listed = layer::names(archive)?;
    let kept: Vec<&str> = KEPT
        .iter()
        .filter(|pattern| listed.iter().any(|name| matches(pattern, name)))
        .copied()
        .collect();
    layer::unpack(archive, folder, &["--wildcards"], &kept)
}

fn of_file(file: &Path, layers: &Layers) -> Result<Kernel> {
    let file = fs::canonicalize(file)
        .with_context(|| format!("failed to find the kernel {}", file.display()))?;
    if file.is_dir() {
        return Kernel::in_folder(&file, layers);
    }
    if file.extension().is_some_and(|extension| extension == "deb") {
        let status =
            fs::metadata(&file).with_context(|| format!("failed to look at {}", file.display()))?;
        let changed = status.modified()?.duration_since(UNIX_EPOCH)?.as_secs();
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        let folder = super::cache()?
            .join("files")
            .join(format!("{name}-{}-{changed}", status.len()));
        let _lock = unpacked::lock()?;
        if !folder.is_dir() {
            let partial = folder.with_added_extension("partial");
            unpacked::fresh(&partial)?;
            unpack(&file, &partial)?;
            disk::rename(&partial, &folder)?;
        }
        return Kernel::in_folder(&folder, layers);
    }
    let boot = file.parent().unwrap_or(Path::new("/"));
    let beside = boot.parent().unwrap_or(Path::new("/"));
    Kernel::with_image(&file, beside, layers)
}

/// The newest package of a series by its version's numbers, `unsigned` where both are there.
fn choose<'a>(series: &str, arch: Arch, names: &'a [String]) -> Option<&'a str> {
    let ending = format!("-{arch}");
    names
        .iter()
        .filter_map(|name| {
            let rest = name.strip_prefix("linux-image-")?;
            let (version, unsigned) = match rest.strip_suffix("-unsigned") {
                Some(version) => (version, true),
                None => (rest, false),
            };
            let version = version.strip_suffix(&ending)?;
            version.strip_prefix(series)?.strip_prefix('.')?;
            // Flavours are words: cloud, rt, …
            let flavour = version
                .split('-')
                .any(|part| part.starts_with(|first: char| first.is_ascii_alphabetic()));
            (!flavour).then(|| (numbers(version), unsigned, name.as_str()))
        })
        .max()
        .map(|(_, _, name)| name)
}

/// `6.12.117+deb12` → 6, 12, 117, 12.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// Whether a name matches a pattern in which `*` stands for anything, slashes too, as tar takes it.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty() || pattern.ends_with('*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_newest_of_a_series_is_taken_by_numbers() {
        let names = names(&[
            "linux-image-6.1.0-9-amd64-unsigned",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-56-amd64-unsigned",
            "linux-image-6.1.0-57-cloud-amd64-unsigned",
            "linux-image-6.1.0-58-rt-amd64-unsigned",
            "linux-image-6.1.0-59-amd64-dbg",
            "linux-image-6.12.99+deb12-amd64-unsigned",
            "linux-image-6.12.117+deb12-amd64-unsigned",
            "linux-image-6.12.118+deb12-cloud-amd64",
            "linux-image-6.1.0-60-arm64-unsigned",
            "linux-image-6.1.0-61-rt-arm64-unsigned",
        ]);
        let of = |series| choose(series, Arch::AMD64, &names);
        assert_eq!(of("6.1"), Some("linux-image-6.1.0-56-amd64-unsigned"));
        assert_eq!(
            of("6.12"),
            Some("linux-image-6.12.117+deb12-amd64-unsigned")
        );
        assert_eq!(of("6.6"), None);
        let arm64 = choose("6.1", Arch::ARM64, &names);
        assert_eq!(arm64, Some("linux-image-6.1.0-60-arm64-unsigned"));
    }

    #[test]
    fn a_series_is_told_from_a_file() {
        assert_eq!("6.1".parse(), Ok(Wanted::Series("6.1".to_owned())));
        assert!("6".parse::<Wanted>().is_err());
        assert!("6.1.x".parse::<Wanted>().is_err());
        assert_eq!("/".parse(), Ok(Wanted::File("/".into())));
    }

    #[test]
    fn patterns_match_as_tars_do() {
        assert!(matches("./boot/vmlinuz-*", "./boot/vmlinuz-6.1.0-56-amd64"));
        let deep = "./lib/modules/6.1.0-56-amd64/kernel/net/bridge/bridge.ko";
        assert!(matches("./lib/modules/*/kernel/net/*", deep));
        assert!(!matches("./lib/modules/*/kernel/fs/*", deep));
        assert!(!matches("./boot/vmlinuz-*", deep));
    }
}
