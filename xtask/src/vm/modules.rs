//! Which of a kernel's modules come first: read from the lists that `depmod` makes.

use std::collections::HashSet;

use anyhow::{Context as _, Result};

/// The files to insert for these modules, in order, by `modules.dep` and `modules.builtin`; what is
/// built in needs none.
pub fn order<'a>(wanted: &[&str], dep: &'a str, builtin: &str) -> Result<Vec<&'a str>> {
    let mut files = Vec::new();
    let mut seen = HashSet::new();
    for wanted in wanted {
        let line = dep.lines().find(|line| {
            line.split_once(':')
                .is_some_and(|(file, _)| is(file, wanted))
        });
        let Some((file, needs)) = line.and_then(|line| line.split_once(':')) else {
            let there = builtin.lines().any(|file| is(file, wanted));
            there
                .then_some(())
                .with_context(|| format!("this kernel has no module {wanted}"))?;
            continue;
        };
        // The last one named is the first needed (`depmod(8)` writes them so).
        let needs = needs.split_whitespace().rev();
        files.extend(needs.chain([file]).filter(|file| seen.insert(*file)));
    }
    Ok(files)
}

/// Whether a file holds a module; the kernel takes `-` and `_` in names for the same.
fn is(file: &str, module: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    let name = name.split(".ko").next().unwrap_or(name);
    name.replace('-', "_") == module
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/net/9p/9pnet.ko.xz:
kernel/fs/netfs/netfs.ko.xz:
kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/fscache/fscache.ko.xz kernel/fs/netfs/netfs.ko.xz
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz
kernel/fs/overlayfs/overlay.ko.xz:
";

    #[test]
    fn a_module_comes_after_what_it_needs_and_once() {
        let order = order(&["9pnet_virtio", "9p"], DEP, "").unwrap();
        assert_eq!(
            order,
            [
                "kernel/net/9p/9pnet.ko.xz",
                "kernel/net/9p/9pnet_virtio.ko.xz",
                "kernel/fs/netfs/netfs.ko.xz",
                "kernel/fs/fscache/fscache.ko.xz",
                "kernel/fs/9p/9p.ko.xz",
            ]
        );
    }

    #[test]
    fn what_is_built_in_needs_no_file_and_what_is_nowhere_is_an_error() {
        let builtin = "kernel/drivers/virtio/virtio-pci.ko\n";
        assert!(order(&["virtio_pci"], DEP, builtin).unwrap().is_empty());
        let error = order(&["9p", "btrfs"], DEP, builtin).unwrap_err();
        assert_eq!(error.to_string(), "this kernel has no module btrfs");
    }
}
