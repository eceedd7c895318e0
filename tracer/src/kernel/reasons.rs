//! The kernel's drop reasons: their names, and what they mean for a lookup.

use std::collections::BTreeMap;

use anyhow::Result;
use tracer_common::{
    dns::Cause,
    drops::{MAX_REASONS, Reason},
};

use super::btf::Btf;

/// The reasons of the running kernel, by number.
#[derive(Debug, Default)]
pub struct Reasons {
    names: BTreeMap<u32, String>,
}

/// Reasons that mean failure, with the cause that they are to a lookup. Names as in
/// include/net/dropreason-core.h, without `SKB_DROP_REASON_`; those that a kernel lacks are left out.
const FAILURES: &[(&str, Cause)] = &[
    ("NEIGH_CREATEFAIL", Cause::NeighbourTableFull),
    ("NEIGH_FAILED", Cause::NeighbourUnresolved),
    ("NEIGH_DEAD", Cause::NeighbourUnresolved),
    ("NEIGH_QUEUEFULL", Cause::NeighbourQueueFull),
    ("NEIGH_HH_FILLFAIL", Cause::NeighbourUnresolved),
    ("NETFILTER_DROP", Cause::Netfilter),
    ("SOCKET_RCVBUFF", Cause::SocketBufferFull),
    ("PROTO_MEM", Cause::SocketBufferFull),
    ("IP_OUTNOROUTES", Cause::NoRoute),
    ("IP_INNOROUTES", Cause::NoRoute),
    ("NO_SOCKET", Cause::PortUnreachable),
    ("BPF_CGROUP_EGRESS", Cause::Dropped),
    ("IP_INADDRERRORS", Cause::Dropped),
    ("IP_RPFILTER", Cause::Dropped),
    ("IP_CSUM", Cause::Dropped),
    ("UDP_CSUM", Cause::Dropped),
    ("PKT_TOO_BIG", Cause::Dropped),
    ("SOCKET_FILTER", Cause::Dropped),
    ("CPU_BACKLOG", Cause::Dropped),
    ("FULL_RING", Cause::Dropped),
    ("QDISC_DROP", Cause::Dropped),
    ("QDISC_OVERLIMIT", Cause::Dropped),
    ("TC_EGRESS", Cause::Dropped),
    ("TC_INGRESS", Cause::Dropped),
    ("XDP", Cause::Dropped),
    ("NOMEM", Cause::Dropped),
    ("DEV_READY", Cause::Dropped),
];

/// No drops at all.
const CONSUMED: &[&str] = &["NOT_DROPPED_YET", "CONSUMED", "MAX", "SUBSYS_MASK"];

impl Reasons {
    /// From the kernel's `enum skb_drop_reason`.
    pub fn resolve(btf: &Btf) -> Result<Self> {
        let names = btf
            .enumeration("skb_drop_reason")?
            .into_iter()
            .filter_map(|(name, number)| {
                Some((number, name.strip_prefix("SKB_DROP_REASON_")?.to_owned()))
            })
            .collect();
        Ok(Self { names })
    }

    /// The reason's name in metrics and events, such as `neigh_createfail`.
    pub fn name(&self, number: u32) -> String {
        self.names
            .get(&number)
            .map_or_else(|| format!("reason_{number}"), |name| name.to_lowercase())
    }

    /// Numbers and names, as in metrics, of those that mean failure.
    pub fn names_of_failures(&self) -> Vec<(u32, String)> {
        self.meanings()
            .filter(|(_, meaning)| meaning.is_failure != 0)
            .map(|(number, _)| (number, self.name(number)))
            .collect()
    }

    /// Numbers and meanings of those that mean something: what the map `REASONS` holds.
    pub fn meanings(&self) -> impl Iterator<Item = (u32, Reason)> {
        self.names.iter().filter_map(|(&number, name)| {
            let failure = FAILURES.iter().find(|(failure, _)| failure == name);
            // The last stands for all beyond; what is consumed is not dropped.
            if number >= MAX_REASONS - 1 || CONSUMED.contains(&name.as_str()) {
                return None;
            }
            let is_unspecified = failure.is_none();
            Some((
                number,
                Reason {
                    is_failure: failure.is_some().into(),
                    cause: failure.map_or(Cause::Dropped, |(_, cause)| *cause) as u8,
                    is_unspecified: is_unspecified.into(),
                    // A BPF datapath (bpf_redirect_neigh) frees without a reason.
                    ends_refusal: (name == "NEIGH_CREATEFAIL" || name == "NOT_SPECIFIED").into(),
                },
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_reasons_keep_their_number() {
        assert_eq!(Reasons::default().name(77), "reason_77");
    }
}
