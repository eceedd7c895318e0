//! Source `local`: network namespaces with a name under `/run/netns`, as `ip netns` makes them.
//! (Host processes get their systemd unit's name in the resolver, from the cgroup.)

use std::{
    collections::HashMap,
    fs, io,
    net::IpAddr,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};
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

/// What a namespace says of itself, from inside.
#[derive(Clone, Debug, Default)]
pub(super) struct Inside {
    /// Its cookie; needs 5.14.
    pub cookie: Option<u64>,
    /// Its addresses, but for loopback and link-local ones, which say nothing outside.
    pub addresses: Vec<IpAddr>,
}

/// The source, with what the namespaces said.
#[derive(Default)]
pub struct Local {
    /// `None`: nothing of it, for this process may not enter it.
    inside: HashMap<Inode, Option<Inside>>,
    folder_changed: Option<SystemTime>,
    noticed: Option<Instant>,
}

/// A name appears before the namespace is bound to it: after a change the folder is looked at again
/// for this long.
const SETTLE: Duration = Duration::from_millis(500);

impl Source for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn has_changed(&mut self) -> bool {
        let changed = fs::metadata(DIRECTORY).and_then(|m| m.modified()).ok();
        if changed != self.folder_changed {
            self.folder_changed = changed;
            self.noticed = Some(Instant::now());
        }
        self.noticed.is_some_and(|at| at.elapsed() < SETTLE)
    }

    fn pods(&mut self, addresses: bool) -> Result<Vec<Known>> {
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
        self.learn(&found, addresses, ask);
        Ok(found
            .into_iter()
            .map(|(name, _, inode)| {
                let inside = self.inside.get(&inode).cloned().flatten();
                let inside = inside.unwrap_or_default();
                Known {
                    net_cookie: inside.cookie,
                    netns: u32::try_from(inode.0).ok(),
                    addresses: inside.addresses,
                    provisional: is_runtimes(&name),
                    ..Known::of(Owner::new("(netns)", &name))
                }
            })
            .collect())
    }
}

impl Local {
    /// Asks those namespaces that it has not heard of yet; all where `addresses` are wanted.
    fn learn(
        &mut self,
        found: &[(String, PathBuf, Inode)],
        addresses: bool,
        ask: impl Fn(&Path) -> io::Result<Inside>,
    ) {
        self.inside
            .retain(|inode, _| found.iter().any(|(_, _, i)| i == inode));
        for (_, path, inode) in found {
            let wanted = match self.inside.get(inode) {
                None => true,
                Some(Some(_)) => addresses,
                // Whoever may not enter it now may not later: each try would take a thread, in vain.
                Some(None) => false,
            };
            if !wanted {
                continue;
            }
            let inside = match ask(path) {
                Ok(inside) => Some(inside),
                Err(why) if why.kind() == io::ErrorKind::PermissionDenied => None,
                Err(_) => continue,
            };
            // Still the same one: it was not a successor that answered.
            if namespace_inode(path) == Some(*inode) {
                self.inside.insert(*inode, inside);
            }
        }
    }
}

/// What there is to name here, for `tracer doctor`.
pub fn examine() -> String {
    let named = fs::read_dir(DIRECTORY).map_or(0, |entries| {
        entries
            .flatten()
            .filter(|entry| namespace_inode(&entry.path()).is_some())
            .count()
    });
    format!("{named} network namespaces under {DIRECTORY}, and the host's units by their cgroups")
}

/// Has a container runtime given the name? containerd: `cni-<uuid>`; CRI-O: `<uuid>`.
fn is_runtimes(name: &str) -> bool {
    let uuid = name.strip_prefix("cni-").unwrap_or(name);
    let parts: Vec<usize> = uuid.split('-').map(str::len).collect();
    parts == [8, 4, 4, 4, 12] && uuid.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

/// The inode of the namespace bound at `path`, if one is.
pub(super) fn namespace_inode(path: &Path) -> Option<Inode> {
    if statfs(path).ok()?.f_type as u64 != NSFS_MAGIC {
        return None;
    }
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

/// Asks the namespace at `path` for its cookie and addresses, from inside. Needs CAP_SYS_ADMIN, and
/// is [`io::ErrorKind::PermissionDenied`] without. On a thread of its own, for a thread cannot leave a
/// namespace entered by name.
pub(super) fn ask(path: &Path) -> io::Result<Inside> {
    let path: PathBuf = path.to_owned();
    // Where no thread can be had now, the namespace is asked again.
    let thread = std::thread::Builder::new().spawn(move || -> io::Result<Inside> {
        let namespace = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        if fstatfs(&namespace)?.f_type as u64 != NSFS_MAGIC {
            return Err(io::ErrorKind::NotFound.into());
        }
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
        let addresses = getifaddrs().map_or_else(
            |_| Vec::new(),
            |interfaces| {
                interfaces
                    .filter_map(|interface| interface.address)
                    .filter_map(|address| routable(&address))
                    .collect()
            },
        );
        Ok(Inside {
            cookie: sys::netns_cookie(&socket).ok(),
            addresses,
        })
    })?;
    let panicked = |_| io::Error::other("it panicked");
    thread.join().map_err(panicked)?
}

fn routable(address: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return (!v4.ip().is_loopback()).then(|| v4.ip().into());
    }
    let v6 = address.as_sockaddr_in6()?.ip();
    (!v6.is_loopback() && !v6.is_unicast_link_local()).then(|| v6.into())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

    use super::*;

    const OWN: &str = "/proc/thread-self/ns/net";

    #[test]
    fn without_the_right_to_enter_it_a_namespace_is_asked_once() {
        let path = PathBuf::from(OWN);
        let inode = namespace_inode(&path).unwrap();
        let found = [("cart".to_owned(), path, inode)];
        let mut local = Local::default();
        let asked = Cell::new(0);
        let mut learn = |addresses, answer: Result<Inside, io::ErrorKind>| {
            local.learn(&found, addresses, |_| {
                asked.set(asked.get() + 1);
                answer.clone().map_err(io::Error::from)
            });
            asked.get()
        };
        // Any other failure may pass, as that of a thread that could not be had.
        assert_eq!(learn(false, Err(io::ErrorKind::WouldBlock)), 1);
        assert_eq!(learn(false, Err(io::ErrorKind::PermissionDenied)), 2);
        assert_eq!(learn(false, Ok(Inside::default())), 2);
        assert_eq!(learn(true, Ok(Inside::default())), 2);
        // Its name may be another's by now.
        local.learn(&[], false, |_| Ok(Inside::default()));
        assert!(local.inside.is_empty());
        local.learn(&found, false, |_| Ok(Inside::default()));
        assert!(local.inside[&inode].is_some());
    }

    #[test]
    fn who_may_not_enter_a_namespace_is_told_so() {
        let answer = std::thread::spawn(|| {
            let mut own = capabilities(None).unwrap();
            own.effective.remove(CapabilitySet::SYS_ADMIN);
            set_capabilities(None, own).unwrap();
            ask(Path::new(OWN))
        });
        let why = answer.join().unwrap().unwrap_err();
        assert_eq!(why.kind(), io::ErrorKind::PermissionDenied);
        let none = ask(Path::new("/proc/version")).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn names_that_runtimes_give_are_told_from_peoples() {
        assert!(is_runtimes("cni-1f8c3f6e-5a3b-4d4e-9c43-0a1b2c3d4e5f"));
        assert!(is_runtimes("1f8c3f6e-5a3b-4d4e-9c43-0a1b2c3d4e5f"));
        for name in [
            "",
            "cni-",
            "cart",
            "cni-cart",
            "1f8c3f6e-5a3b-4d4e-9c43-0a1b2c3d4eXX",
        ] {
            assert!(!is_runtimes(name), "{name}");
        }
    }
}
