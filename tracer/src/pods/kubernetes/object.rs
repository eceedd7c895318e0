//! What tracer reads of a pod object, and what it makes of it.

use std::{net::IpAddr, sync::Arc, time::Instant};

use kube::core::Object;
use serde::Deserialize;

use crate::pods::{Known, Owner};

/// A pod as the API server sends it: the rest of the object is skipped while it is read.
pub(super) type Pod = Object<Spec, Status>;

/// Part of PodSpec v1.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    host_network: Option<bool>,
}

/// Part of PodStatus v1.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodIp {
    ip: Option<String>,
}

/// The kubelet names a static pod's cgroup after this annotation of its mirror in the API
/// (pkg/kubelet/types/pod_update.go), not after the mirror's uid.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// A pod, and when it was made: where two claim an address the younger one has it, for an address is
/// given anew before the object of the pod that had it is gone.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// What the resolver gets.
    pub known: Known,
    /// Still wanted?
    pub ending: bool,
    /// Since when it is known to be over: its object may stay for days.
    pub over: Option<Instant>,
    /// Seconds since 1970.
    pub created: i64,
}

impl Kept {
    /// Is there anything new in it for the resolver?
    pub fn says_the_same(&self, other: &Self) -> bool {
        let (mine, theirs) = (&self.known, &other.known);
        mine.owner == theirs.owner
            && mine.owner.uid == theirs.owner.uid
            && mine.cgroup_uids == theirs.cgroup_uids
            && mine.addresses == theirs.addresses
            && self.ending == other.ending
            && self.over.is_some() == other.over.is_some()
    }

    /// As the object says now, over since it was first seen to be.
    pub fn after(mut self, old: &Self) -> Self {
        if self.over.is_some() {
            self.over = old.over.or(self.over);
        }
        self
    }
}

/// Key of a pod in the store.
pub(super) fn uid(pod: &Pod) -> Option<&str> {
    pod.metadata.uid.as_deref().filter(|uid| is_plain(uid, 253))
}

/// A few hundred bytes of it. `None` for an object whose names no API server lets through: they
/// become label values, where a parenthesis would pass for one of tracer's own words.
pub(super) fn keep(pod: &Pod) -> Option<Kept> {
    let metadata = &pod.metadata;
    let uid = uid(pod)?;
    let namespace = metadata.namespace.as_deref().filter(|n| is_plain(n, 63))?;
    let name = metadata.name.as_deref().filter(|n| is_plain(n, 253))?;
    let mut cgroup_uids = vec![uid.to_owned()];
    let config_hash = metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(CONFIG_HASH));
    if let Some(hash) = config_hash
        && hash != uid
        && is_plain(hash, 253)
    {
        cgroup_uids.push(hash.clone());
    }
    Some(Kept {
        known: Known {
            cgroup_uids,
            addresses: addresses(pod),
            own_namespace: pod.spec.host_network != Some(true),
            ..Known::of(Arc::new(Owner {
                namespace: namespace.to_owned(),
                pod: name.to_owned(),
                uid: Some(uid.to_owned()),
            }))
        },
        ending: metadata.deletion_timestamp.is_some(),
        over: is_over(pod).then(Instant::now),
        created: metadata
            .creation_timestamp
            .as_ref()
            .map_or(0, |at| at.0.as_second()),
    })
}

/// Has all of it ended for good?
fn is_over(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// None of a pod in the host's network, whose addresses are the node's, and none of a pod that is
/// over, whose address may be another's already.
fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    if is_over(pod) || pod.spec.host_network == Some(true) {
        return Vec::new();
    }
    let all = status.pod_ips.iter().flatten().map(|of| of.ip.as_deref());
    let mut addresses: Vec<IpAddr> = all
        .chain([status.pod_ip.as_deref()])
        .flatten()
        .filter_map(|ip| ip.parse().ok())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.shrink_to_fit();
    addresses
}

/// Letters, digits, `-`, `.`: all that names and uids of Kubernetes are made of.
pub(super) fn is_plain(text: &str, max_len: usize) -> bool {
    (1..=max_len).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(metadata: &Value, spec: &Value, status: &Value) -> Option<Kept> {
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "cart-7d9f",
                "namespace": "shop",
                "uid": "3f2b4c1d-0000-4000-8000-000000000001",
                "resourceVersion": "7",
                "creationTimestamp": "2026-01-02T03:04:05Z",
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
            },
            "spec": {"containers": [{"name": "a", "image": "b"}], "nodeName": "n1"},
            "status": status,
        });
        for (part, more) in [("metadata", metadata), ("spec", spec)] {
            for (key, value) in more.as_object().unwrap() {
                object[part][key] = value.clone();
            }
        }
        keep(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn a_running_pod_has_its_names_and_all_its_addresses() {
        let kept = pod(
            &json!({}),
            &json!({}),
            &json!({"phase": "Running", "podIP": "10.0.0.2",
                   "podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]}),
        )
        .unwrap();
        assert_eq!(kept.known.owner.to_string(), "shop/cart-7d9f");
        let uid = "3f2b4c1d-0000-4000-8000-000000000001";
        assert_eq!(kept.known.owner.uid.as_deref(), Some(uid));
        assert_eq!(kept.known.cgroup_uids, [uid]);
        let expected: [IpAddr; 2] = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(kept.known.addresses, expected);
        assert_eq!(kept.created, 1_767_323_045);
        assert!(!kept.ending);
    }

    #[test]
    fn old_servers_give_one_address_and_new_pods_none() {
        let old = pod(
            &json!({}),
            &json!({}),
            &json!({"phase": "Running", "podIP": "10.0.0.2", "podIPs": null}),
        );
        assert_eq!(old.unwrap().known.addresses.len(), 1);
        for status in [json!(null), json!({}), json!({"podIP": ""})] {
            let new = pod(&json!({}), &json!({}), &status).unwrap();
            assert!(new.known.addresses.is_empty());
        }
    }

    #[test]
    fn the_nodes_address_is_no_pods() {
        let status = json!({"phase": "Running", "podIPs": [{"ip": "172.30.0.11"}]});
        let host = pod(&json!({}), &json!({"hostNetwork": true}), &status).unwrap();
        assert!(host.known.addresses.is_empty() && !host.known.own_namespace);
        assert_eq!(host.known.cgroup_uids.len(), 1);
    }

    #[test]
    fn a_pod_that_is_over_gives_up_its_address() {
        for phase in ["Succeeded", "Failed"] {
            let status = json!({"phase": phase, "podIPs": [{"ip": "10.0.0.2"}]});
            let kept = pod(&json!({}), &json!({}), &status).unwrap();
            assert!(kept.known.addresses.is_empty() && kept.over.is_some());
        }
    }

    #[test]
    fn a_static_pod_has_its_hash_too() {
        let annotations = json!({"annotations": {CONFIG_HASH: "0123456789abcdef0123456789abcdef"}});
        let kept = pod(&annotations, &json!({}), &json!({})).unwrap();
        assert_eq!(
            kept.known.cgroup_uids[1],
            "0123456789abcdef0123456789abcdef"
        );
    }

    #[test]
    fn names_that_pass_for_tracers_own_are_refused() {
        for metadata in [
            json!({"namespace": "(host)"}),
            json!({"name": "a\nb"}),
            json!({"name": "\u{202e}cod"}),
            json!({"name": ""}),
            json!({"uid": "a/b"}),
            json!({"namespace": null}),
        ] {
            assert!(pod(&metadata, &json!({}), &json!({})).is_none());
        }
    }
}
