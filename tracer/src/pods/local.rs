//! Source `local`: network namespaces with a name under `/run/netns`, as `ip netns` makes them.
//! (Host processes get their systemd unit's name in the resolver, from the cgroup.)

use std::{
    collections::HashMap,
    fs,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::Result;
use rustix::{
    fs::{Mode, OFlags, fstatfs, open, statfs},
    net::{AddressFamily, SocketType},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{Known, Owner, Source};
use crate::kernel::sys;

const DIRECTORY: &str = "/run/netns";
/// `NSFS_MAGIC` (include/uapi/linux/magic.h): a file that is not bound to a namespace (yet) is
/// somewhere else.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Identity of a namespace's inode for as long as it lives: inode numbers are reused within a
/// second, but not with the same time of birth.
type Inode = (u64, i64, i64);

/// The source, with the cookies it has asked for.
#[derive(Default)]
pub struct Local {
    cookies: HashMap<Inode, u64>,
}

impl Source for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn pods(&mut self) -> Result<Vec<Known>> {
        let mut found = Vec::new();
        // No folder, no named namespaces.
        if let Ok(entries) = fs::read_dir(DIRECTORY) {
            for entry in entries.flatten() {
                let path = entry.path();
                if let Some(inode) = namespace_inode(&path) {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    found.push((name, path, inode));
                }
            }
        }
        self.cookies
            .retain(|inode, _| found.iter().any(|(_, _, i)| i == inode));
        for (_, path, inode) in &found {
            if !self.cookies.contains_key(inode)
                && let Some(cookie) = cookie_of(path)
                // Still the same one: the cookie was not that of a successor.
                && namespace_inode(path) == Some(*inode)
            {
                self.cookies.insert(*inode, cookie);
            }
        }
        Ok(found
            .into_iter()
            .map(|(name, _, inode)| Known {
                owner: Owner::new("(netns)", &name),
                net_cookie: self.cookies.get(&inode).copied(),
                netns: u32::try_from(inode.0).ok(),
                cgroup: None,
            })
            .collect())
    }
}

/// The inode of the namespace bound at `path`, if one is.
pub(super) fn namespace_inode(path: &Path) -> Option<Inode> {
    if statfs(path).ok()?.f_type as u64 != NSFS_MAGIC {
        return None;
    }
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

/// Asks the namespace at `path` for its cookie, from inside. Needs CAP_SYS_ADMIN and 5.14; `None`
/// without. On a thread of its own, for a thread cannot leave a namespace it entered by name.
pub(super) fn cookie_of(path: &Path) -> Option<u64> {
    let path: PathBuf = path.to_owned();
    std::thread::spawn(move || -> Option<u64> {
        let namespace = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        if fstatfs(&namespace).ok()?.f_type as u64 != NSFS_MAGIC {
            return None;
        }
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).ok()?;
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None).ok()?;
        sys::netns_cookie(&socket).ok()
    })
    .join()
    .ok()
    .flatten()
}
