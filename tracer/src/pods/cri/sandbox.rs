//! From a pod sandbox to what the join needs.

use std::{
    cmp::Reverse,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use serde::Deserialize;

use super::api::{NODE, PodSandbox, PodSandboxStatusResponse, READY};
use crate::{
    kernel::cgroup,
    output::printable,
    pods::{Known, Owner, local},
};

/// What is longer is no Kubernetes name.
const MAX_NAME: usize = 253;
/// For how long details that are missing are asked for again.
const SETTLE: Duration = Duration::from_secs(30);
/// A pod that is younger is asked for as often as that: what it counts waits for it.
const YOUNG: Duration = Duration::from_mins(3);
/// When details that the runtime could not give are asked for again, at first and at last.
const AGAIN: [Duration; 2] = [Duration::from_secs(10), Duration::from_mins(5)];
/// For how long a sandbox that has ended is named by the uid in its cgroup's path: it may have ended
/// before it was seen.
const ENDED: Duration = Duration::from_mins(1);

/// A sandbox, as far as it is known.
#[derive(Clone, Debug)]
pub(super) struct Sandbox {
    pub(super) id: String,
    known: Known,
    created: SystemTime,
    pub(super) ready: bool,
    asked: bool,
    /// Until when not to ask again, for the runtime could not say, and how long that is.
    not_before: Option<(Instant, Duration)>,
    pub(super) complete: bool,
}

/// The part of the verbose answer's JSON that counts; containerd and CRI-O agree on it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Info {
    pid: Option<u32>,
    runtime_spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    cgroups_path: String,
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    r#type: String,
    path: PathBuf,
}

impl Sandbox {
    /// What a list says.
    pub(super) fn of(item: &PodSandbox, now: SystemTime) -> Self {
        let metadata = item.metadata.clone().unwrap_or_default();
        let uid = name(&metadata.uid);
        let created = u64::try_from(item.created_at).unwrap_or_default();
        let created = SystemTime::UNIX_EPOCH + Duration::from_nanos(created);
        let age = now.duration_since(created).unwrap_or_default();
        Self {
            id: item.id.clone(),
            known: Known {
                since: Instant::now().checked_sub(age),
                cgroup_uids: uid.iter().cloned().collect(),
                ..Known::of(Arc::new(Owner {
                    namespace: name(&metadata.namespace).unwrap_or_else(|| "_".to_owned()),
                    // One without a name has its sandbox's.
                    pod: name(&metadata.name)
                        .or_else(|| name(&item.id))
                        .unwrap_or_else(|| "_".to_owned()),
                    uid,
                }))
            },
            created,
            ready: item.state == READY,
            asked: false,
            not_before: None,
            complete: false,
        }
    }

    /// What the join gets, if it still counts.
    pub(super) fn known(&self, now: SystemTime) -> Option<Known> {
        (self.ready || self.age(now) < ENDED).then(|| self.known.clone())
    }

    pub(super) fn wants_details(&self, now: SystemTime) -> bool {
        // The first time, and again while it is still being made.
        let wants = self.ready && !self.complete && (!self.asked || self.age(now) < SETTLE);
        wants && self.not_before.is_none_or(|(at, _)| Instant::now() >= at)
    }

    /// The runtime could not say: it is asked again, but not at each look, for it may take long to say so.
    pub(super) fn without(&mut self, why: &anyhow::Error) {
        let pause = match self.not_before {
            Some((_, pause)) if self.age(SystemTime::now()) > YOUNG => (2 * pause).min(AGAIN[1]),
            _ => AGAIN[0],
        };
        if self.not_before.is_none() {
            let (owner, id) = (&self.known.owner, printable(&self.id));
            let why = format!("{why:#}");
            let why = printable(&why);
            tracing::warn!("pod {owner}: no details of its sandbox {id}: {why}");
        }
        self.not_before = Instant::now().checked_add(pause).map(|at| (at, pause));
    }

    /// The lower of two has what both claim: the one that has not ended, then the younger.
    pub(super) fn rank(&self) -> (bool, Reverse<SystemTime>, &str) {
        (!self.ready, Reverse(self.created), &self.id)
    }

    fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.created).unwrap_or_default()
    }

    /// With its details. Looks at files, so it may take a moment.
    pub(super) fn with(mut self, details: PodSandboxStatusResponse) -> Self {
        self.asked = true;
        // A runtime that says nothing of the kind (cri-dockerd) leaves uid and addresses.
        let info = details.info.get("info");
        let info: Info = info
            .and_then(|json| serde_json::from_str(json).ok())
            .unwrap_or_default();
        let uid = self.known.owner.uid.as_deref();
        self.known.cgroup = cgroup_of(&info.runtime_spec.linux.cgroups_path, uid);
        let status = details.status.unwrap_or_default();
        let mode = status
            .linux
            .and_then(|linux| linux.namespaces?.options)
            .map_or(0, |options| options.network);
        // The host's namespace and addresses are nobody's.
        if mode == NODE {
            self.complete = true;
            return self;
        }
        let network = status.network.unwrap_or_default();
        let others = network.additional_ips.iter().map(|other| &other.ip);
        self.known.addresses = std::iter::once(&network.ip)
            .chain(others)
            .filter_map(|ip| ip.parse::<IpAddr>().ok())
            .collect();
        let of_path = info.runtime_spec.linux.namespaces;
        let of_path = of_path.into_iter().find(|n| n.r#type == "network");
        let of_path = of_path.map(|n| n.path);
        let of_process = info
            .pid
            .filter(|pid| is_process_of(*pid, &self.id))
            .map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")));
        for path in of_path.into_iter().chain(of_process) {
            if let Some((inode, cookie)) = namespace(&path) {
                self.known.netns = Some(inode);
                self.known.net_cookie = cookie;
                break;
            }
        }
        // cri-dockerd does not tell: then the processes in the pod's cgroup do.
        self.known.own_namespace = self.known.netns.is_none();
        self.complete = self.known.netns.is_some() && !self.known.addresses.is_empty();
        self
    }
}

/// Inode and cookie of the namespace that a file holds.
fn namespace(path: &Path) -> Option<(u32, Option<u64>)> {
    // Where no mount holds the namespace's inode it lives as long as somebody has it open.
    let _open = fs::File::open(path).ok()?;
    let before = local::namespace_inode(path)?;
    let inside = local::ask(path).ok();
    // Still the same one: it was not a successor that answered.
    if local::namespace_inode(path) != Some(before) {
        return None;
    }
    let cookie = inside.and_then(|inside| inside.cookie);
    Some((u32::try_from(before.0).ok()?, cookie))
}

/// Where tracer does not see the host's processes the number is another's.
fn is_process_of(pid: u32, sandbox: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(sandbox))
}

/// The pod's cgroup, from the one of its sandbox as the runtime specification writes it: a path, or
/// `slice:prefix:name` with systemd. Only the sandbox's own where the one above is not the pod's.
fn cgroup_of(specified: &str, uid: Option<&str>) -> Option<String> {
    let parts: Vec<&str> = specified.split(':').collect();
    let (above, own) = if let [slice, prefix, name] = parts[..] {
        let above = slice_path(slice)?;
        let own = format!("{above}/{prefix}-{name}.scope");
        (above, own)
    } else {
        let own = format!("/{}", specified.trim_matches('/'));
        (own.rsplit_once('/')?.0.to_owned(), own)
    };
    if uid.is_some() && cgroup::pod_uids(&above).next().as_deref() == uid {
        return Some(above);
    }
    (own != "/").then_some(own)
}

/// `a-b.slice` is in `a.slice`: systemd.slice(5).
fn slice_path(slice: &str) -> Option<String> {
    let stem = slice.strip_suffix(".slice")?;
    let ends = stem.match_indices('-').map(|(at, _)| at);
    let mut path = String::new();
    for end in ends.chain([stem.len()]) {
        path = format!("{path}/{}.slice", &stem[..end]);
    }
    Some(path)
}

/// A name that is a Kubernetes name by its characters, whatever the runtime says: no name stands for
/// something that is no pod, as `(host)` does, and none forges a line. `None`: it is empty.
fn name(text: &str) -> Option<String> {
    let name: String = text
        .chars()
        .take(MAX_NAME)
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || "-._".contains(c) => c,
            _ => '_',
        })
        .collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, os::unix::fs::MetadataExt as _};

    use super::*;
    use crate::pods::cri::api::{
        LinuxPodSandboxStatus, NamespaceOption, PodIp, PodSandboxMetadata, PodSandboxNetworkStatus,
        PodSandboxStatus,
    };

    const UID: &str = "1f8c3f6e-5a3b-4d4e-9c43-0a1b2c3d4e5f";

    fn item(state: i32) -> PodSandbox {
        PodSandbox {
            id: "0a1b".to_owned(),
            metadata: Some(PodSandboxMetadata {
                name: "cart-1".to_owned(),
                uid: UID.to_owned(),
                namespace: "shop".to_owned(),
            }),
            state,
            created_at: 1_000_000_000,
        }
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn details(network: i32, path: &str) -> PodSandboxStatusResponse {
        let info = serde_json::json!({
            "pid": 1,
            "runtimeSpec": {"linux": {
                "cgroupsPath": format!("/kubepods/besteffort/pod{UID}/0a1b"),
                "namespaces": [{"type": "pid"}, {"type": "network", "path": path}],
            }},
        });
        let options = Some(NamespaceOption { network });
        PodSandboxStatusResponse {
            status: Some(PodSandboxStatus {
                network: Some(PodSandboxNetworkStatus {
                    ip: "10.0.0.2".to_owned(),
                    additional_ips: vec![PodIp {
                        ip: "fd00::2".to_owned(),
                    }],
                }),
                linux: Some(LinuxPodSandboxStatus {
                    namespaces: Some(super::super::api::Namespace { options }),
                }),
            }),
            info: [("info".to_owned(), info.to_string())].into(),
        }
    }

    #[test]
    fn a_pod_has_its_addresses_namespace_and_cgroup() {
        let own = "/proc/thread-self/ns/net";
        let sandbox = Sandbox::of(&item(READY), at(2)).with(details(0, own));
        assert!(sandbox.complete && !sandbox.wants_details(at(2)));
        let known = sandbox.known(at(1_000)).unwrap();
        assert_eq!(known.owner.to_string(), "shop/cart-1");
        assert_eq!(known.cgroup_uids, [UID]);
        let pod = format!("/kubepods/besteffort/pod{UID}");
        assert_eq!(known.cgroup, Some(pod));
        let addresses = ["10.0.0.2", "fd00::2"].map(|a| a.parse::<IpAddr>().unwrap());
        assert_eq!(known.addresses, addresses);
        let inode = fs::metadata(own).unwrap().ino();
        assert_eq!(known.netns.map(u64::from), Some(inode));
    }

    #[test]
    fn in_the_hosts_namespace_only_the_cgroup_tells() {
        let sandbox = Sandbox::of(&item(READY), at(2)).with(details(NODE, "/proc/self/ns/net"));
        assert!(sandbox.complete);
        assert_eq!(
            (sandbox.known.netns, sandbox.known.net_cookie),
            (None, None)
        );
        assert!(sandbox.known.addresses.is_empty());
        assert!(sandbox.known.cgroup.is_some());
    }

    #[test]
    fn a_namespace_that_the_runtime_does_not_tell_is_looked_for() {
        let told = |details: PodSandboxStatusResponse| {
            let known = Sandbox::of(&item(READY), at(2)).with(details).known;
            (known.own_namespace, known.netns.is_some())
        };
        let own = "/proc/thread-self/ns/net";
        assert_eq!(told(details(0, own)), (false, true));
        // cri-dockerd has no words of its own.
        let silent = |network| PodSandboxStatusResponse {
            info: HashMap::new(),
            ..details(network, own)
        };
        assert_eq!(told(silent(0)), (true, false));
        assert_eq!(told(silent(NODE)), (false, false), "it has the host's");
    }

    #[test]
    fn details_that_are_missing_are_asked_for_while_the_pod_is_young() {
        let sandbox = Sandbox::of(&item(READY), at(2));
        assert!(sandbox.wants_details(at(2)));
        let sandbox = sandbox.with(details(0, "/nowhere"));
        assert_eq!(
            sandbox.known.netns, None,
            "and process 1 is not the sandbox's"
        );
        assert!(sandbox.wants_details(at(2)));
        assert!(!sandbox.wants_details(at(2) + SETTLE));
    }

    #[test]
    fn one_that_has_ended_is_known_by_its_uid_for_a_while() {
        let sandbox = Sandbox::of(&item(1), at(2));
        assert!(!sandbox.wants_details(at(2)));
        assert!(sandbox.known(at(2)).is_some());
        assert!(sandbox.known(at(2) + ENDED).is_none());
    }

    #[test]
    fn cgroups_are_read_in_both_notations() {
        let of = |specified: &str| cgroup_of(specified, Some(UID));
        let pod = format!("/kubepods/pod{UID}");
        assert_eq!(of(&format!("{pod}/0a1b")), Some(pod));
        let slice = "kubepods-besteffort-pod1f8c3f6e_5a3b_4d4e_9c43_0a1b2c3d4e5f.slice";
        let path = format!("/kubepods.slice/kubepods-besteffort.slice/{slice}");
        assert_eq!(of(&format!("{slice}:cri-containerd:0a1b")), Some(path));
        // Not made by a kubelet: others share what is above.
        assert_eq!(of("/k8s.io/0a1b").as_deref(), Some("/k8s.io/0a1b"));
        let own = "/system.slice/crio-0a1b.scope";
        assert_eq!(of("system.slice:crio:0a1b").as_deref(), Some(own));
        assert_eq!(
            of("kubepods/pod-other/0a1b").as_deref(),
            Some("/kubepods/pod-other/0a1b")
        );
        for nothing in ["", "/", "a:b:c"] {
            assert_eq!(of(nothing), None, "{nothing}");
        }
        assert_eq!(
            cgroup_of("/k8s.io/0a1b", None).as_deref(),
            Some("/k8s.io/0a1b")
        );
    }

    #[test]
    fn names_are_names() {
        assert_eq!(name("cart-7d9f.v1").as_deref(), Some("cart-7d9f.v1"));
        assert_eq!(name("(host)").as_deref(), Some("_host_"));
        assert_eq!(name("a\nb\"\u{1b}[31m").as_deref(), Some("a_b___31m"));
        assert_eq!(name(&"ä".repeat(9_999)).unwrap().len(), MAX_NAME);
        assert_eq!(name(""), None);
        let nameless = PodSandbox {
            metadata: None,
            ..item(READY)
        };
        let known = Sandbox::of(&nameless, at(2)).known;
        assert_eq!(known.owner.to_string(), "_/0a1b");
        assert!(known.cgroup_uids.is_empty());
    }
}
