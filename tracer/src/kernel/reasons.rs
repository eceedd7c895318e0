//! The kernel's drop reasons: their names, and what they mean for a lookup.

use std::collections::BTreeMap;

use anyhow::Result;
use tracer_common::{
    dns::Cause,
    drops::{MAX_REASONS, Reason, SAYS_NOTHING},
};

use super::btf::Btf;

/// The reasons of the running kernel, by number.
#[derive(Debug, Default)]
pub struct Reasons {
    names: BTreeMap<u32, String>,
    /// Changes to what means failure: names as in [`FAILURES`], in their order.
    changes: Vec<(String, bool)>,
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
    ("SOCKET_BACKLOG", Cause::SocketBufferFull),
    ("TCP_LISTEN_OVERFLOW", Cause::Dropped),
    ("SECURITY_HOOK", Cause::Dropped),
    ("QDISC_CONGESTED", Cause::Dropped),
    ("QDISC_BURST_DROP", Cause::Dropped),
    ("CAKE_FLOOD", Cause::Dropped),
    ("FQ_BAND_LIMIT", Cause::Dropped),
    ("FQ_HORIZON_LIMIT", Cause::Dropped),
    ("FQ_FLOW_LIMIT", Cause::Dropped),
    ("TCP_CSUM", Cause::Dropped),
    ("ICMP_CSUM", Cause::Dropped),
    ("SKB_CSUM", Cause::Dropped),
    ("XFRM_POLICY", Cause::Dropped),
    ("IP_NOPROTO", Cause::Dropped),
    ("IP_INHDR", Cause::Dropped),
    ("FRAG_REASM_TIMEOUT", Cause::Dropped),
    ("FRAG_TOO_FAR", Cause::Dropped),
    ("SKB_UCOPY_FAULT", Cause::Dropped),
    ("IP_INVALID_SOURCE", Cause::Dropped),
    ("IP_LOCALNET", Cause::Dropped),
    ("RECURSION_LIMIT", Cause::Dropped),
    ("MACVLAN_BROADCAST_BACKLOG", Cause::Dropped),
    ("IPVLAN_MULTICAST_BACKLOG", Cause::Dropped),
];

/// Drops of copies that were meant for somebody else, such as a bridge floods to all its ports: whatever is known of the
/// packet, it goes on.
const COPIES: &[&str] = &["OTHERHOST"];

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
        Ok(Self {
            names,
            changes: Vec::new(),
        })
    }

    /// Changes what means failure (`--drop-reasons`): names as in metrics, and whether they do. Gives
    /// the names that this kernel does not know.
    pub fn change(&mut self, changes: &[(String, bool)]) -> Vec<String> {
        self.changes = changes
            .iter()
            .map(|(name, is_failure)| (name.to_uppercase(), *is_failure))
            .collect();
        let known = |name: &String| self.names.values().any(|n| n.eq_ignore_ascii_case(name));
        let unknown = changes.iter().filter(|(name, _)| !known(name));
        unknown.map(|(name, _)| name.clone()).collect()
    }

    /// Does the kernel drop a packet that failed for this reason?
    fn is_failure(&self, name: &str) -> bool {
        let change = self.changes.iter().rev().find(|(n, _)| n == name);
        change.map_or_else(
            || FAILURES.iter().any(|(failure, _)| *failure == name),
            |(_, is_failure)| *is_failure,
        )
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
            let is_failure = self.is_failure(name);
            Some((
                number,
                Reason {
                    is_failure: is_failure.into(),
                    cause: failure.map_or(Cause::Dropped, |(_, cause)| *cause) as u8,
                    is_unspecified: match name.as_str() {
                        _ if is_failure => 0,
                        "NOT_SPECIFIED" | "QUEUE_PURGE" => SAYS_NOTHING,
                        name => (!COPIES.contains(&name)).into(),
                    },
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
    fn what_means_failure_can_be_changed() {
        let names = [(2, "NOT_SPECIFIED"), (3, "NO_SOCKET"), (7, "TCP_CLOSE")];
        let mut reasons = Reasons {
            names: names.map(|(n, name)| (n, name.to_owned())).into(),
            changes: Vec::new(),
        };
        let failures = |reasons: &Reasons| {
            let names = reasons.names_of_failures().into_iter();
            names.map(|(_, name)| name).collect::<Vec<_>>()
        };
        assert_eq!(failures(&reasons), ["no_socket"]);
        let change = |name: &str, on| (name.to_owned(), on);
        let changes = [
            change("tcp_close", true),
            change("no_socket", false),
            change("no_such_reason", true),
        ];
        assert_eq!(reasons.change(&changes), ["no_such_reason"]);
        assert_eq!(failures(&reasons), ["tcp_close"]);
    }

    #[test]
    fn a_copy_for_somebody_else_says_nothing_of_the_packet() {
        let names = [(2, "NOT_SPECIFIED"), (20, "OTHERHOST"), (21, "TCP_CLOSE")];
        let mut reasons = Reasons {
            names: names.map(|(n, name)| (n, name.to_owned())).into(),
            changes: Vec::new(),
        };
        let of = |reasons: &Reasons| {
            let meanings = reasons
                .meanings()
                .map(|(n, meaning)| (n, meaning.is_unspecified));
            meanings.collect::<Vec<_>>()
        };
        assert_eq!(of(&reasons), [(2, SAYS_NOTHING), (20, 0), (21, 1)]);
        // Unless the user wants to know.
        reasons.change(&[("otherhost".to_owned(), true)]);
        assert_eq!(reasons.names_of_failures().len(), 1);
    }

    #[test]
    fn unknown_reasons_keep_their_number() {
        assert_eq!(Reasons::default().name(77), "reason_77");
    }
}
