//! Where the running kernel keeps the fields that the hooks read.
//!
//! Rust emits no CO-RE relocations, so user space looks the offsets up in the kernel's BTF and sets
//! these read-only globals before it loads the programs: the verifier sees constants. A hook whose
//! offsets do not exist is not loaded. `tracer/src/kernel/offsets.rs` is the other half.

use aya_ebpf::Global;

macro_rules! offsets {
    ($($name:ident)*) => {
        $(
            #[unsafe(no_mangle)]
            pub static $name: Global<u32> = Global::new(u32::MAX);
        )*
    };
}

offsets! {
    OFF_NEIGH_TABLE_FAMILY
    OFF_NEIGH_TABLE_ENTRIES
    OFF_NEIGH_TABLE_GC_ENTRIES
    OFF_NEIGH_TABLE_GC_THRESH1
    OFF_NEIGH_TABLE_GC_THRESH2
    OFF_NEIGH_TABLE_GC_THRESH3
    OFF_NEIGH_TABLE_LAST_FLUSH
    OFF_NEIGH_TABLE_PARMS_NET
    OFF_NEIGH_TABLE_NHT
    OFF_NEIGH_TABLE_GC_WORK_FUNC
    OFF_WORK_STRUCT_FUNC
    OFF_NEIGH_HASH_TABLE_BUCKETS
    OFF_NEIGH_HASH_TABLE_SHIFT
    OFF_NEIGHBOUR_NODE
    OFF_NEIGHBOUR_NEXT
    OFF_NEIGHBOUR_DEV
    OFF_NEIGHBOUR_TBL
    OFF_NEIGHBOUR_PRIMARY_KEY
    OFF_NEIGH_PARMS_TBL
    OFF_NET_DEVICE_IFINDEX
    OFF_NET_DEVICE_NAME
    OFF_NET_DEVICE_ND_NET
    OFF_NET_DEVICE_IP_PTR
    OFF_NET_DEVICE_IP6_PTR
    OFF_IN_DEVICE_ARP_PARMS
    OFF_INET6_DEV_ND_PARMS
    OFF_NET_NET_COOKIE
    OFF_NET_HASH_MIX
    OFF_NET_NS_INUM
    OFF_NET_LOOPBACK_DEV
    OFF_TASK_NSPROXY
    OFF_TASK_TGID
    OFF_TASK_COMM
    OFF_NSPROXY_NET_NS
    OFF_SK_BUFF_SK
    OFF_SK_BUFF_HEAD
    OFF_SK_BUFF_NETWORK_HEADER
    OFF_SK_BUFF_MAC_HEADER
    OFF_SK_BUFF_PROTOCOL
    OFF_SK_BUFF_NFCT
    OFF_SK_BUFF_DEV
    OFF_SK_BUFF_TAIL
    OFF_SK_BUFF_INNER_NETWORK_HEADER
    OFF_SK_BUFF_DST
    OFF_SOCK_NET
    OFF_SOCK_COOKIE
    OFF_SOCK_NUM
    OFF_SOCK_FAMILY
    OFF_SOCK_STATE
    OFF_SOCK_DADDR
    OFF_SOCK_RCV_SADDR
    OFF_SOCK_DPORT
    OFF_SOCK_V6_DADDR
    OFF_SOCK_V6_RCV_SADDR
    OFF_SOCK_PROTOCOL
    OFF_SOCK_ERR
    OFF_SOCK_ERR_SOFT
    OFF_SOCK_ERROR_QUEUE_TAIL
    OFF_SOCK_EXTERR_ERRNO
    OFF_INET_SOCK_SPORT
    OFF_ICSK_RETRANSMITS
    OFF_TCP_SOCK_SEGS_OUT
    OFF_TCP_SOCK_TOTAL_RETRANS
    OFF_TCP_SOCK_BYTES_RECEIVED
    OFF_TCP_SOCK_BYTES_ACKED
    OFF_TCP_SOCK_DATA_SEGS_OUT
    OFF_TCP_SOCK_MSTAMP
    OFF_SOCK_MAX_ACK_BACKLOG
    OFF_SOCK_SHUTDOWN
    OFF_TCP_SOCK_MSS_CLAMP
    OFF_SK_BUFF_CB
    OFF_TCP_SKB_CB_GSO_SEGS
    OFF_SOCK_TYPE
    OFF_SOCK_CGROUP
    OFF_CGROUP_KN
    OFF_CGROUP_ROOT
    OFF_CGROUP_ROOT_HIERARCHY_ID
    OFF_KERNFS_NODE_ID
    OFF_DST_ENTRY_ERROR
    OFF_RT6_INFO_GATEWAY
    OFF_NF_CONN_STATUS
    OFF_NF_CONN_ORIGINAL_SOURCE
    OFF_NF_CONN_ORIGINAL_SOURCE_PORT
    OFF_NF_CONN_ORIGINAL_DESTINATION
    OFF_NF_CONN_ORIGINAL_PORT
    OFF_NF_CONN_REPLY_SOURCE
    OFF_NF_CONN_REPLY_SOURCE_PORT
    OFF_NF_CONN_REPLY_DESTINATION
    OFF_NF_CONN_REPLY_DESTINATION_PORT
    OFF_NET_LIST
    OFF_NET_CT_STAT
    OFF_CONNTRACK_STAT_DROP
    OFF_CONNTRACK_STAT_INSERT_FAILED
    OFF_BPF_ARRAY_PPTRS
    OFF_MSGHDR_NAME
    OFF_MSGHDR_ITER
    OFF_IOV_ITER_TYPE
    OFF_IOV_ITER_OFFSET
    OFF_IOV_ITER_COUNT
    OFF_IOV_ITER_UBUF
    OFF_IOV_ITER_IOV
    OFF_IOV_ITER_NR_SEGS
}

/// What counts as "not in this kernel".
pub const ABSENT: u32 = u32::MAX;

/// `ITER_UBUF` of `enum iter_type`, which came with 6.0.
#[unsafe(no_mangle)]
pub static ITER_UBUF: Global<u32> = Global::new(ABSENT);
/// `ITER_IOVEC` of `enum iter_type`.
#[unsafe(no_mangle)]
pub static ITER_IOVEC: Global<u32> = Global::new(ABSENT);
/// The bits of the type of an `iov_iter` that say it: before 5.14 one of the others is the direction.
#[unsafe(no_mangle)]
pub static IOV_ITER_TYPE_MASK: Global<u32> = Global::new(0xff);

/// Index of the drop reason among `kfree_skb`'s raw arguments.
#[unsafe(no_mangle)]
pub static ARG_DROP_REASON: Global<u32> = Global::new(ABSENT);

/// Index of the receiving socket among them, which came with 6.11.
#[unsafe(no_mangle)]
pub static ARG_DROP_SOCKET: Global<u32> = Global::new(ABSENT);

/// Index of `err` among `tcp_retransmit_skb`'s raw arguments.
#[unsafe(no_mangle)]
pub static ARG_RETRANSMIT_ERROR: Global<u32> = Global::new(ABSENT);

/// Address of ___neigh_create(), 0 where it is not known.
#[unsafe(no_mangle)]
pub static NEIGH_CREATE_START: Global<u64> = Global::new(0);
/// Where it ends.
#[unsafe(no_mangle)]
pub static NEIGH_CREATE_END: Global<u64> = Global::new(0);
/// Address of neigh_periodic_work(), 0 where it is not known.
#[unsafe(no_mangle)]
pub static NEIGH_PERIODIC_START: Global<u64> = Global::new(0);
/// Where it ends.
#[unsafe(no_mangle)]
pub static NEIGH_PERIODIC_END: Global<u64> = Global::new(0);

/// Address of neigh_invalidate(), 0 where it is not known: frees what waited for a neighbour that
/// does not answer, through ndisc_error_report() without a reason.
#[unsafe(no_mangle)]
pub static NEIGH_INVALIDATE_START: Global<u64> = Global::new(0);
/// Where it ends.
#[unsafe(no_mangle)]
pub static NEIGH_INVALIDATE_END: Global<u64> = Global::new(0);
/// Address of ndisc_error_report(), 0 where it is not known or inlined.
#[unsafe(no_mangle)]
pub static NDISC_ERROR_START: Global<u64> = Global::new(0);
/// Where it ends.
#[unsafe(no_mangle)]
pub static NDISC_ERROR_END: Global<u64> = Global::new(0);
/// Address of arp_error_report(), 0 where it is not known or inlined. It ends with the call that frees: kernels with
/// frame pointers (Debian's arm64) make no jump of that, and the packet is freed in here then.
#[unsafe(no_mangle)]
pub static ARP_ERROR_START: Global<u64> = Global::new(0);
/// Where it ends.
#[unsafe(no_mangle)]
pub static ARP_ERROR_END: Global<u64> = Global::new(0);

/// Address of nf_hook_slow(), 0 where it is not known: frees what netfilter refuses.
#[unsafe(no_mangle)]
pub static NF_HOOK_SLOW_START: Global<u64> = Global::new(0);
/// Where it ends.
#[unsafe(no_mangle)]
pub static NF_HOOK_SLOW_END: Global<u64> = Global::new(0);

/// Not 0: the one network namespace, by inode, whose sockets and drops are counted (`TRACER_ONLY_NETNS`).
#[unsafe(no_mangle)]
pub static ONLY_NETNS: Global<u32> = Global::new(0);

/// Ring records a second for each hook (`--event-rate`).
#[unsafe(no_mangle)]
pub static EVENT_RATE: Global<u64> = Global::new(1000);

/// Server ports followed (`--dns-port`), 0 where unused. Host byte order.
#[unsafe(no_mangle)]
pub static DNS_PORTS: Global<[u16; tracer_common::dns::MAX_PORTS as usize]> =
    Global::new([53, 0, 0, 0, 0, 0, 0, 0]);

/// `--silent-port`, 0 where unused. Host byte order.
#[unsafe(no_mangle)]
pub static SILENT_PORTS: Global<[u16; tracer_common::tcp::MAX_SILENT_PORTS]> =
    Global::new([6443, 2379, 0, 0, 0, 0, 0, 0]);

/// Stands for this object and what it is told: see the map `ACTIVE`.
#[unsafe(no_mangle)]
pub static BUILD: Global<u64> = Global::new(0);

/// `--silent-after`, nanoseconds.
#[unsafe(no_mangle)]
pub static SILENT_AFTER_NS: Global<u64> = Global::new(10_000_000_000);

/// `--dns-timeout`, nanoseconds.
#[unsafe(no_mangle)]
pub static DNS_TIMEOUT_NS: Global<u64> = Global::new(5_000_000_000);

/// Pending lookups that one client may hold.
#[unsafe(no_mangle)]
pub static DNS_PENDING_PER_CLIENT: Global<u64> = Global::new(16_384);
