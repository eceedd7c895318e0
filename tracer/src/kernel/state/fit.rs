//! Is a pinned map what this version expects? aya takes whatever is pinned under the name, and programs
//! that count in a map of another shape would count nonsense.

use std::{error::Error, io, path::Path};

use anyhow::{Context as _, Result};
use aya::maps::MapInfo;
use aya_obj::Object;
use rustix::io::Errno;

use crate::kernel::load::OBJECT;

/// Type, sizes and room of a map (`enum bpf_map_type` and `struct bpf_map_info`, include/uapi/linux/bpf.h).
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

fn expected() -> Result<Vec<(String, Shape)>> {
    let object = Object::parse(OBJECT).context("cannot read the eBPF object")?;
    let maps = object.maps.into_iter();
    Ok(maps
        // Sections of globals and aya-log's own map belong to one build.
        .filter(|(name, _)| !name.starts_with('.') && !name.starts_with("AYA_"))
        .map(|(name, map)| {
            let shape = Shape {
                kind: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: map.max_entries(),
                flags: map.map_flags(),
            };
            (name, shape)
        })
        .collect())
}

/// The maps that are pinned.
pub fn names() -> Result<Vec<String>> {
    Ok(expected()?.into_iter().map(|(name, _)| name).collect())
}

/// A map that is not in the folder, if any.
pub fn missing(folder: &Path) -> Result<Option<String>> {
    Ok(names()?
        .into_iter()
        .find(|name| !folder.join(name).exists()))
}

/// Compares the maps in a folder with what is expected, and says what does not fit. One that is not there will be made.
/// Fails where they cannot be looked at.
pub fn misfit(folder: &Path) -> Result<Option<String>> {
    for (name, expected) in expected()? {
        let path = folder.join(&name);
        if !path.exists() {
            continue;
        }
        let what = || format!("{} is no map that can be read", path.display());
        let info = match MapInfo::from_pin(&path) {
            Ok(info) => info,
            Err(error) if is_denied(&error) => return Err(error).with_context(what),
            Err(error) => return Ok(Some(format!("{}: {error}", what()))),
        };
        let found = Shape {
            kind: info.map_type()? as u32,
            key_size: info.key_size(),
            value_size: info.value_size(),
            max_entries: info.max_entries(),
            flags: info.map_flags(),
        };
        if found != expected {
            return Ok(Some(format!(
                "the map {} has another shape: {found:?}, expected {expected:?}",
                path.display()
            )));
        }
    }
    Ok(None)
}

/// Is it for want of rights or room that it cannot be opened? Then it may fit all the same.
fn is_denied(error: &(dyn Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| {
        (*error).source()
    });
    let mut codes = causes.filter_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    codes.any(|code| {
        let denials = [
            Errno::PERM,
            Errno::ACCESS,
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
        ];
        denials.iter().any(|errno| errno.raw_os_error() == code)
    })
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};

    use super::*;

    /// What the maps mean is written in these. Where it changes, raise `SCHEMA`, so that counters of the
    /// other meaning are not gone on with; then note the new sum here.
    #[test]
    fn what_the_maps_hold_changes_with_the_schema_only() {
        let sources = [
            include_str!("../../../../tracer-common/src/dns.rs"),
            include_str!("../../../../tracer-common/src/dns/lookup.rs"),
            include_str!("../../../../tracer-common/src/dns/near.rs"),
            include_str!("../../../../tracer-common/src/dns/socket.rs"),
            include_str!("../../../../tracer-common/src/drops.rs"),
            include_str!("../../../../tracer-common/src/event.rs"),
            include_str!("../../../../tracer-common/src/neigh.rs"),
            include_str!("../../../../tracer-common/src/peers.rs"),
            include_str!("../../../../tracer-common/src/quota.rs"),
            include_str!("../../../../tracer-common/src/tcp.rs"),
        ];
        let mut hasher = DefaultHasher::new();
        // Their tests stand last, and mean nothing.
        let until_tests = |source: &&'static str| {
            let lines = source.lines();
            lines.take_while(|line| *line != "#[cfg(test)]")
        };
        for line in sources.iter().flat_map(until_tests) {
            let line = line.trim();
            if !line.starts_with("//") {
                line.hash(&mut hasher);
            }
        }
        let sum = format!("{:016x}", hasher.finish());
        assert_eq!(
            (tracer_common::SCHEMA, sum.as_str()),
            (5, "20cb71cfadc46d4c")
        );
    }

    #[test]
    fn the_maps_are_known() {
        let names = names().unwrap();
        assert!(names.iter().any(|name| name == "NEIGH"), "{names:?}");
        assert!(
            !names.iter().any(|name| name.contains("rodata")),
            "{names:?}"
        );
    }
}
