//! Which fields each hook reads, and where the running kernel keeps them: the other half of
//! `tracer-ebpf/src/layout.rs`.

use tracer_common::Hook;

use super::{btf::Btf, features::Features, sends};

/// What a global that names no field is set to: "not in this kernel".
pub const ABSENT: u32 = u32::MAX;

/// A field: the global that carries its offset, its structure, its path in it.
type Field = (&'static str, &'static str, &'static str);

const NEIGH: &[Field] = &[
    ("OFF_NEIGH_TABLE_FAMILY", "neigh_table", "family"),
    ("OFF_NEIGH_TABLE_ENTRIES", "neigh_table", "entries"),
    ("OFF_NEIGH_TABLE_GC_ENTRIES", "neigh_table", "gc_entries"),
    ("OFF_NEIGH_TABLE_GC_THRESH1", "neigh_table", "gc_thresh1"),
    ("OFF_NEIGH_TABLE_GC_THRESH2", "neigh_table", "gc_thresh2"),
    ("OFF_NEIGH_TABLE_GC_THRESH3", "neigh_table", "gc_thresh3"),
    ("OFF_NEIGH_TABLE_LAST_FLUSH", "neigh_table", "last_flush"),
    ("OFF_NEIGH_TABLE_PARMS_NET", "neigh_table", "parms.net"),
    ("OFF_NEIGH_TABLE_NHT", "neigh_table", "nht"),
    (
        "OFF_NEIGH_TABLE_GC_WORK_FUNC",
        "neigh_table",
        "gc_work.work.func",
    ),
    (
        "OFF_NEIGH_HASH_TABLE_SHIFT",
        "neigh_hash_table",
        "hash_shift",
    ),
    ("OFF_NEIGHBOUR_DEV", "neighbour", "dev"),
    ("OFF_NEIGH_PARMS_TBL", "neigh_parms", "tbl"),
    ("OFF_NET_DEVICE_IFINDEX", "net_device", "ifindex"),
    ("OFF_NET_DEVICE_NAME", "net_device", "name"),
    ("OFF_NET_DEVICE_ND_NET", "net_device", "nd_net"),
    ("OFF_NET_DEVICE_IP_PTR", "net_device", "ip_ptr"),
    ("OFF_NET_DEVICE_IP6_PTR", "net_device", "ip6_ptr"),
    ("OFF_IN_DEVICE_ARP_PARMS", "in_device", "arp_parms"),
    ("OFF_INET6_DEV_ND_PARMS", "inet6_dev", "nd_parms"),
    ("OFF_NET_NET_COOKIE", "net", "net_cookie"),
    ("OFF_NET_NS_INUM", "net", "ns.inum"),
    ("OFF_NET_LOOPBACK_DEV", "net", "loopback_dev"),
    ("OFF_TASK_NSPROXY", "task_struct", "nsproxy"),
    ("OFF_NSPROXY_NET_NS", "nsproxy", "net_ns"),
];

const DNS: &[Field] = &[
    ("OFF_NET_NET_COOKIE", "net", "net_cookie"),
    ("OFF_NET_NS_INUM", "net", "ns.inum"),
    ("OFF_TASK_TGID", "task_struct", "tgid"),
    ("OFF_TASK_COMM", "task_struct", "comm"),
    ("OFF_SK_BUFF_SK", "sk_buff", "sk"),
    ("OFF_SOCK_NET", "sock", "__sk_common.skc_net"),
    ("OFF_SOCK_NUM", "sock", "__sk_common.skc_num"),
    ("OFF_SOCK_TYPE", "sock", "sk_type"),
];

const DROPS: &[Field] = &[
    ("OFF_SK_BUFF_SK", "sk_buff", "sk"),
    ("OFF_SK_BUFF_HEAD", "sk_buff", "head"),
    ("OFF_SK_BUFF_NETWORK_HEADER", "sk_buff", "network_header"),
    ("OFF_SK_BUFF_MAC_HEADER", "sk_buff", "mac_header"),
    ("OFF_NET_DEVICE_IFINDEX", "net_device", "ifindex"),
    ("OFF_SK_BUFF_PROTOCOL", "sk_buff", "protocol"),
    ("OFF_SK_BUFF_DEV", "sk_buff", "dev"),
    ("OFF_SK_BUFF_TAIL", "sk_buff", "tail"),
    (
        "OFF_SK_BUFF_INNER_NETWORK_HEADER",
        "sk_buff",
        "inner_network_header",
    ),
    ("OFF_SOCK_TYPE", "sock", "sk_type"),
    ("OFF_SK_BUFF_DST", "sk_buff", "_skb_refdst"),
    ("OFF_DST_ENTRY_ERROR", "dst_entry", "error"),
    ("OFF_SOCK_NET", "sock", "__sk_common.skc_net"),
    ("OFF_SOCK_COOKIE", "sock", "__sk_common.skc_cookie"),
    ("OFF_SOCK_NUM", "sock", "__sk_common.skc_num"),
    ("OFF_SOCK_STATE", "sock", "__sk_common.skc_state"),
    ("OFF_NET_DEVICE_ND_NET", "net_device", "nd_net"),
    ("OFF_NET_DEVICE_NAME", "net_device", "name"),
    ("OFF_NET_NET_COOKIE", "net", "net_cookie"),
    ("OFF_NET_NS_INUM", "net", "ns.inum"),
    ("OFF_TASK_TGID", "task_struct", "tgid"),
    ("OFF_TASK_COMM", "task_struct", "comm"),
    ("OFF_TASK_NSPROXY", "task_struct", "nsproxy"),
    ("OFF_NSPROXY_NET_NS", "nsproxy", "net_ns"),
];

const GC: &[Field] = &[
    ("OFF_NEIGH_TABLE_FAMILY", "neigh_table", "family"),
    ("OFF_NET_DEVICE_IFINDEX", "net_device", "ifindex"),
    ("OFF_NET_DEVICE_ND_NET", "net_device", "nd_net"),
    ("OFF_NET_NET_COOKIE", "net", "net_cookie"),
    ("OFF_NET_NS_INUM", "net", "ns.inum"),
    ("OFF_NEIGHBOUR_DEV", "neighbour", "dev"),
    ("OFF_NEIGHBOUR_TBL", "neighbour", "tbl"),
    ("OFF_WORK_STRUCT_FUNC", "work_struct", "func"),
    ("OFF_NEIGHBOUR_PRIMARY_KEY", "neighbour", "primary_key"),
];

const TCP: &[Field] = &[
    ("OFF_SOCK_NET", "sock", "__sk_common.skc_net"),
    ("OFF_SOCK_FAMILY", "sock", "__sk_common.skc_family"),
    ("OFF_SOCK_STATE", "sock", "__sk_common.skc_state"),
    ("OFF_SOCK_DADDR", "sock", "__sk_common.skc_daddr"),
    ("OFF_SOCK_RCV_SADDR", "sock", "__sk_common.skc_rcv_saddr"),
    ("OFF_SOCK_DPORT", "sock", "__sk_common.skc_dport"),
    ("OFF_SOCK_PROTOCOL", "sock", "sk_protocol"),
    ("OFF_SOCK_ERR", "sock", "sk_err"),
    ("OFF_SOCK_ERR_SOFT", "sock", "sk_err_soft"),
    ("OFF_SOCK_ERROR_QUEUE_TAIL", "sock", "sk_error_queue.prev"),
    ("OFF_SOCK_EXTERR_ERRNO", "sock_exterr_skb", "ee.ee_errno"),
    ("OFF_INET_SOCK_SPORT", "inet_sock", "inet_sport"),
    (
        "OFF_ICSK_RETRANSMITS",
        "inet_connection_sock",
        "icsk_retransmits",
    ),
    ("OFF_TCP_SOCK_SEGS_OUT", "tcp_sock", "segs_out"),
    ("OFF_TCP_SOCK_TOTAL_RETRANS", "tcp_sock", "total_retrans"),
    ("OFF_TCP_SOCK_BYTES_RECEIVED", "tcp_sock", "bytes_received"),
    ("OFF_TCP_SOCK_BYTES_ACKED", "tcp_sock", "bytes_acked"),
    ("OFF_SK_BUFF_CB", "sk_buff", "cb"),
    ("OFF_TCP_SKB_CB_GSO_SEGS", "tcp_skb_cb", "tcp_gso_segs"),
    ("OFF_NET_NET_COOKIE", "net", "net_cookie"),
    ("OFF_NET_NS_INUM", "net", "ns.inum"),
    ("OFF_TASK_TGID", "task_struct", "tgid"),
    ("OFF_TASK_COMM", "task_struct", "comm"),
];

const CGROUPS: &[Field] = &[
    ("OFF_CGROUP_ROOT", "cgroup", "root"),
    (
        "OFF_CGROUP_ROOT_HIERARCHY_ID",
        "cgroup_root",
        "hierarchy_id",
    ),
    ("OFF_CGROUP_KN", "cgroup", "kn"),
    ("OFF_KERNFS_NODE_ID", "kernfs_node", "id"),
];

/// Fields that a hook does without where they are missing: cgroups, IPv6 and conntrack may not be
/// built in.
const OPTIONAL: &[Field] = &[
    ("OFF_SOCK_CGROUP", "sock", "sk_cgrp_data.cgroup"),
    ("OFF_CGROUP_KN", "cgroup", "kn"),
    ("OFF_KERNFS_NODE_ID", "kernfs_node", "id"),
    ("OFF_SOCK_V6_DADDR", "sock", "__sk_common.skc_v6_daddr"),
    (
        "OFF_SOCK_V6_RCV_SADDR",
        "sock",
        "__sk_common.skc_v6_rcv_saddr",
    ),
    ("OFF_RT6_INFO_GATEWAY", "rt6_info", "rt6i_gateway"),
    ("OFF_SK_BUFF_NFCT", "sk_buff", "_nfct"),
    ("OFF_NET_HASH_MIX", "net", "hash_mix"),
    ("OFF_NET_LIST", "net", "list"),
    ("OFF_BPF_ARRAY_PPTRS", "bpf_array", "pptrs"),
    ("OFF_TCP_SOCK_DATA_SEGS_OUT", "tcp_sock", "data_segs_out"),
    ("OFF_TCP_SOCK_MSTAMP", "tcp_sock", "tcp_mstamp"),
    ("OFF_SOCK_MAX_ACK_BACKLOG", "sock", "sk_max_ack_backlog"),
    ("OFF_SOCK_SHUTDOWN", "sock", "sk_shutdown"),
    ("OFF_TCP_SOCK_MSS_CLAMP", "tcp_sock", "rx_opt.mss_clamp"),
];

/// Set by [`Offsets::conntrack`], all or none.
const CONNTRACK: [&str; 12] = [
    "OFF_NET_CT_STAT",
    "OFF_CONNTRACK_STAT_DROP",
    "OFF_CONNTRACK_STAT_INSERT_FAILED",
    "OFF_NF_CONN_STATUS",
    "OFF_NF_CONN_ORIGINAL_SOURCE",
    "OFF_NF_CONN_ORIGINAL_SOURCE_PORT",
    "OFF_NF_CONN_ORIGINAL_DESTINATION",
    "OFF_NF_CONN_ORIGINAL_PORT",
    "OFF_NF_CONN_REPLY_SOURCE",
    "OFF_NF_CONN_REPLY_SOURCE_PORT",
    "OFF_NF_CONN_REPLY_DESTINATION",
    "OFF_NF_CONN_REPLY_DESTINATION_PORT",
];

/// What the kernel's BTF gave.
#[derive(Debug, Default)]
pub struct Offsets {
    /// Global and value, each once.
    pub globals: Vec<(&'static str, u32)>,
    /// Hooks that cannot run, with the reason.
    pub missing: Vec<(Hook, String)>,
    /// What the kernel has besides fields.
    pub features: Features,
    /// Why the ends of sends cannot be watched, if so.
    pub no_sends: Option<String>,
}

impl Offsets {
    /// Looks every field up. A missing one switches its hook off; that is no error.
    pub fn resolve(btf: &Btf) -> Self {
        let mut offsets = Self {
            features: Features::resolve(btf),
            ..Self::default()
        };
        if !offsets.features.net_cookie {
            // The member is there, but most namespaces have none: `net_cookie()` in the programs
            // makes one of what every namespace has.
            offsets.set("OFF_NET_NET_COOKIE", ABSENT);
        }
        for (hook, fields) in [
            (Hook::Neigh, NEIGH),
            (Hook::Dns, DNS),
            (Hook::Drops, DROPS),
            (Hook::Gc, GC),
            (Hook::Tcp, TCP),
            (Hook::Cgroups, CGROUPS),
        ] {
            for (global, structure, path) in fields {
                match btf.offset(structure, path) {
                    Ok(offset) => offsets.set(global, offset),
                    Err(why) => {
                        offsets.set(global, ABSENT);
                        offsets.missing.push((hook, format!("{why:#}")));
                    }
                }
            }
        }
        if let Err(_no_pointer) = btf.offset("sock", "sk_cgrp_data.cgroup")
            && let Ok(word) = btf.offset("sock", "sk_cgrp_data.val")
        {
            // Before 5.15 the pointer shares a word with the data of cgroup1's controllers.
            offsets.set("OFF_SOCK_CGROUP", word);
        }
        for (global, structure, path) in OPTIONAL {
            offsets.set(global, btf.offset(structure, path).unwrap_or(ABSENT));
        }
        // Conntrack may be a module, whose types vmlinux does not have.
        if offsets.conntrack(btf).is_err()
            && let Err(why) = btf
                .module("nf_conntrack")
                .and_then(|module| offsets.conntrack(&module))
        {
            tracing::debug!("conntrack's types are not known: {why:#}");
            for global in CONNTRACK {
                offsets.set(global, ABSENT);
            }
        }
        if let Err(why) = offsets.hash_layout(btf) {
            offsets.missing.push((Hook::Neigh, format!("{why:#}")));
        }
        let (mut reason, mut socket) = (ABSENT, ABSENT);
        if offsets.features.drop_reasons
            && let Ok(index) = btf.tracepoint_argument("kfree_skb", "skb_drop_reason")
        {
            reason = index;
            if btf.tracepoint_arguments("kfree_skb").ok() > Some(index + 1) {
                socket = index + 1;
            }
        }
        offsets.set("ARG_DROP_REASON", reason);
        offsets.set("ARG_DROP_SOCKET", socket);
        match sends::globals(btf) {
            Ok(globals) => {
                for (global, value) in globals {
                    offsets.set(global, value);
                }
            }
            Err(why) => offsets.no_sends = Some(format!("{why:#}")),
        }
        // Behind the socket and the packet.
        let has_error = btf.tracepoint_arguments("tcp_retransmit_skb").ok() == Some(3);
        offsets.set("ARG_RETRANSMIT_ERROR", if has_error { 2 } else { ABSENT });
        offsets
    }

    /// Conntrack: its figures, and of `struct nf_conn` the state and where the original direction
    /// leads.
    fn conntrack(&mut self, btf: &Btf) -> anyhow::Result<()> {
        let tuple = btf.offset("nf_conn", "tuplehash")? // [IP_CT_DIR_ORIGINAL], the first
            + btf.offset("nf_conntrack_tuple_hash", "tuple")?;
        let reply = tuple + btf.size("nf_conntrack_tuple_hash")?; // [IP_CT_DIR_REPLY]
        let offsets = [
            btf.offset("net", "ct.stat")?,
            btf.offset("ip_conntrack_stat", "drop")?,
            btf.offset("ip_conntrack_stat", "insert_failed")?,
            btf.offset("nf_conn", "status")?,
            tuple + btf.offset("nf_conntrack_tuple", "src.u3")?,
            tuple + btf.offset("nf_conntrack_tuple", "src.u")?,
            tuple + btf.offset("nf_conntrack_tuple", "dst.u3")?,
            tuple + btf.offset("nf_conntrack_tuple", "dst.u")?,
            reply + btf.offset("nf_conntrack_tuple", "src.u3")?,
            reply + btf.offset("nf_conntrack_tuple", "src.u")?,
            reply + btf.offset("nf_conntrack_tuple", "dst.u3")?,
            reply + btf.offset("nf_conntrack_tuple", "dst.u")?,
        ];
        for (global, offset) in CONNTRACK.into_iter().zip(offsets) {
            self.set(global, offset);
        }
        Ok(())
    }

    /// The hash table of neighbours: since 6.13 an array of hlist heads that runs through
    /// `neighbour.hash`, before an array of pointers to entries that point at each other.
    fn hash_layout(&mut self, btf: &Btf) -> anyhow::Result<()> {
        let (buckets, node, next) = if let Ok(heads) = btf.offset("neigh_hash_table", "hash_heads")
        {
            let node = btf.offset("neighbour", "hash")?;
            (heads, node, node + btf.offset("hlist_node", "next")?)
        } else {
            (
                btf.offset("neigh_hash_table", "hash_buckets")?,
                0,
                btf.offset("neighbour", "next")?,
            )
        };
        self.set("OFF_NEIGH_HASH_TABLE_BUCKETS", buckets);
        self.set("OFF_NEIGHBOUR_NODE", node);
        self.set("OFF_NEIGHBOUR_NEXT", next);
        Ok(())
    }

    /// Why a hook cannot run, if so.
    pub fn why_not(&self, hook: Hook) -> Option<&str> {
        self.missing
            .iter()
            .find(|(h, _)| *h == hook)
            .map(|(_, why)| why.as_str())
    }

    fn set(&mut self, global: &'static str, value: u32) {
        if !self.globals.iter().any(|(g, _)| *g == global) {
            self.globals.push((global, value));
        }
    }
}
