//! [`crate::fuzz`]: what a container runtime answers.

use std::time::{Duration, SystemTime};

use prost::Message as _;

use super::{
    api::{
        LinuxPodSandboxStatus, ListPodSandboxResponse, NODE, Namespace, NamespaceOption,
        PodSandboxStatusResponse,
    },
    sandbox::Sandbox,
};

/// A list of sandboxes; and the details of each, for which the same bytes are read again.
pub(crate) fn cri(bytes: &[u8]) -> bool {
    let list = ListPodSandboxResponse::decode(bytes);
    let details = PodSandboxStatusResponse::decode(bytes);
    let items = list.map(|list| list.items).unwrap_or_default();
    let understood = !items.is_empty() || details.as_ref().is_ok_and(|d| !d.info.is_empty());
    let mut details = details.unwrap_or_default();
    // In the host's namespace: no file is opened whose name the fuzzer makes up.
    let options = Some(NamespaceOption { network: NODE });
    details.status.get_or_insert_default().linux = Some(LinuxPodSandboxStatus {
        namespaces: Some(Namespace { options }),
    });
    let now = SystemTime::UNIX_EPOCH + Duration::from_hours(1);
    let empty = super::api::PodSandbox::default();
    for item in items.iter().chain([&empty]) {
        let sandbox = Sandbox::of(item, now).with(details.clone());
        let Some(known) = sandbox.known(now) else {
            continue;
        };
        let (owner, cgroup) = (&known.owner, &known.cgroup);
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        for name in [&owner.namespace, &owner.pod].into_iter().chain(&owner.uid) {
            assert!(
                (1..=253).contains(&name.len()) && name.chars().all(is_name),
                "{name:?}"
            );
        }
        assert!(
            cgroup.as_ref().is_none_or(|path| path.starts_with('/')),
            "{cgroup:?}"
        );
    }
    understood
}
