//! What the fixtures hold: all that `tracer/src/kernel/{offsets,features,reasons}.rs` look up, and
//! what they look for in its place on older kernels. A fixture that lacks something shows in the
//! snapshots of `tracer/tests/kernels.rs`.

/// Structures, and the members kept.
pub const FIELDS: &[(&str, &[&str])] = &[
    ("bpf_array", &["pptrs"]),
    ("cgroup", &["root", "kn"]),
    ("cgroup_root", &["hierarchy_id"]),
    ("dst_entry", &["error"]),
    ("hlist_node", &["next"]),
    ("in_device", &["arp_parms"]),
    ("inet6_dev", &["nd_parms"]),
    ("inet_connection_sock", &["icsk_retransmits"]),
    ("inet_sock", &["inet_sport"]),
    ("ip_conntrack_stat", &["drop", "insert_failed"]),
    (
        "iov_iter",
        &[
            "iter_type",
            "type",
            "iov_offset",
            "count",
            "ubuf",
            "__iov",
            "iov",
            "nr_segs",
        ],
    ),
    ("kernfs_node", &["id"]),
    ("msghdr", &["msg_name", "msg_iter"]),
    (
        "neigh_hash_table",
        &["hash_shift", "hash_heads", "hash_buckets"],
    ),
    ("neigh_parms", &["tbl"]),
    (
        "neigh_table",
        &[
            "family",
            "entries",
            "gc_entries",
            "gc_thresh1",
            "gc_thresh2",
            "gc_thresh3",
            "last_flush",
            "parms.net",
            "nht",
            "gc_work.work.func",
        ],
    ),
    (
        "neighbour",
        &["dev", "tbl", "primary_key", "hash", "next", "dead"],
    ),
    (
        "net",
        &[
            "net_cookie",
            "hash_mix",
            "ns.inum",
            "loopback_dev",
            "list",
            "ct.stat",
        ],
    ),
    (
        "net_device",
        &["ifindex", "name", "nd_net", "ip_ptr", "ip6_ptr"],
    ),
    ("nf_conn", &["tuplehash", "status"]),
    (
        "nf_conntrack_tuple",
        &["src.u3", "src.u", "dst.u3", "dst.u"],
    ),
    ("nf_conntrack_tuple_hash", &["tuple"]),
    ("nsproxy", &["net_ns"]),
    ("rt6_info", &["rt6i_gateway"]),
    (
        "sk_buff",
        &[
            "sk",
            "head",
            "network_header",
            "mac_header",
            "inner_network_header",
            "protocol",
            "dev",
            "tail",
            "cb",
            "_skb_refdst",
            "_nfct",
        ],
    ),
    (
        "sock",
        &[
            "__sk_common.skc_net",
            "__sk_common.skc_num",
            "__sk_common.skc_cookie",
            "__sk_common.skc_state",
            "__sk_common.skc_family",
            "__sk_common.skc_daddr",
            "__sk_common.skc_rcv_saddr",
            "__sk_common.skc_dport",
            "__sk_common.skc_v6_daddr",
            "__sk_common.skc_v6_rcv_saddr",
            "sk_type",
            "sk_shutdown",
            "sk_protocol",
            "sk_err",
            "sk_err_soft",
            "sk_max_ack_backlog",
            "sk_error_queue.prev",
            "sk_cgrp_data.cgroup",
            "sk_cgrp_data.val",
        ],
    ),
    ("sock_exterr_skb", &["ee.ee_errno"]),
    ("task_struct", &["nsproxy", "tgid", "comm"]),
    ("tcp_skb_cb", &["tcp_gso_segs"]),
    (
        "tcp_sock",
        &[
            "segs_out",
            "data_segs_out",
            "total_retrans",
            "bytes_received",
            "bytes_acked",
            "tcp_mstamp",
            "rx_opt.mss_clamp",
        ],
    ),
    ("work_struct", &["func"]),
];

/// Kept whole.
pub const ENUMS: &[&str] = &[
    "bpf_func_id",
    "iter_type",
    "qdisc_drop_reason",
    "skb_drop_reason",
    "skb_drop_reason_subsys",
];

/// Of which the prototypes are kept.
pub const TRACEPOINTS: &[&str] = &[
    "cgroup_mkdir",
    "inet_sk_error_report",
    "inet_sock_set_state",
    "kfree_skb",
    "neigh_cleanup_and_release",
    "neigh_create",
    "tcp_receive_reset",
    "tcp_retransmit_skb",
    "tcp_send_reset",
    "udp_fail_queue_rcv_skb",
    "workqueue_execute_end",
    "workqueue_execute_start",
];

/// Kept with their prototypes.
pub const FUNCTIONS: &[&str] = &[
    "inet_sk_error_report",
    "neigh_destroy",
    "sk_error_report",
    "udp_sendmsg",
    "udpv6_sendmsg",
];
