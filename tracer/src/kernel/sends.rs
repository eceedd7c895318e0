//! The ends of sends: fexit at `udp_sendmsg()` and `udpv6_sendmsg()`, for the hook `dns`. The other half
//! is `tracer-ebpf/src/dns/unsent.rs`.
//!
//! Chosen at run time: where the kernel takes no such programs (no BPF trampolines, no function
//! tracer, a security module that forbids them), queries that never became a packet are not seen.
//! Kprobes could do the same, but take two breakpoints at each UDP send of the node, and CAP_SYS_ADMIN
//! where `kernel.perf_event_paranoid` is 3.

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use tracer_common::dns::{SENT_LEN, Sent};

use super::{btf::Btf, load::Loaded};

/// Programs and the functions that they end with.
pub const PROGRAMS: [(&str, &str); 2] =
    [("udp_sent", "udp_sendmsg"), ("udpv6_sent", "udpv6_sendmsg")];

/// The one that a program ends with.
pub fn function(program: &str) -> &'static str {
    let of_program = PROGRAMS.iter().find(|(name, _)| *name == program);
    of_program.map_or("", |(_, function)| function)
}

/// What is not seen without them, as `tracer doctor` says it.
pub const NOT_SEEN: &str = "sends that fail before IP output, such as without a route in the pod: the application has the \
     error (ENETUNREACH)";

/// `struct iov_iter.type` of kernels before 5.14 holds the direction too (include/linux/uio.h).
const TYPE_WITHOUT_DIRECTION: u32 = 0xfe;

/// Global and value of what the programs read, from the kernel's BTF.
pub fn globals(btf: &Btf) -> Result<Vec<(&'static str, u32)>> {
    let (kind, mask) = match btf.offset("iov_iter", "iter_type") {
        Ok(offset) => (offset, 0xff),
        Err(_) => (btf.offset("iov_iter", "type")?, TYPE_WITHOUT_DIRECTION),
    };
    let kinds = btf.enumeration("iter_type")?;
    let of_kind = |name: &str| kinds.get(name).copied().unwrap_or(super::offsets::ABSENT);
    Ok(vec![
        ("OFF_MSGHDR_NAME", btf.offset("msghdr", "msg_name")?),
        ("OFF_MSGHDR_ITER", btf.offset("msghdr", "msg_iter")?),
        ("OFF_IOV_ITER_TYPE", kind),
        ("IOV_ITER_TYPE_MASK", mask),
        ("ITER_UBUF", of_kind("ITER_UBUF")),
        ("ITER_IOVEC", of_kind("ITER_IOVEC")),
        ("OFF_IOV_ITER_OFFSET", btf.offset("iov_iter", "iov_offset")?),
        ("OFF_IOV_ITER_COUNT", btf.offset("iov_iter", "count")?),
        // Since 6.0.
        (
            "OFF_IOV_ITER_UBUF",
            btf.offset("iov_iter", "ubuf").unwrap_or_default(),
        ),
        // Called so since 6.4.
        (
            "OFF_IOV_ITER_IOV",
            btf.offset("iov_iter", "__iov")
                .or_else(|_| btf.offset("iov_iter", "iov"))?,
        ),
        ("OFF_IOV_ITER_NR_SEGS", btf.offset("iov_iter", "nr_segs")?),
    ])
}

/// The kernel holds none of them: an agent before may have left them.
pub fn leave(loaded: &mut Loaded) {
    for (name, _) in PROGRAMS {
        loaded.unload(name);
    }
}

/// Loads and attaches both; gives the instructions that the verifier walked through, by program. Where
/// one cannot be, [`leave`] is to follow.
pub fn watch(loaded: &mut Loaded) -> Result<Vec<(String, u32)>> {
    let mut verified = Vec::new();
    for (name, _) in PROGRAMS {
        let instructions = loaded.load_program(name)?;
        verified.extend(instructions.map(|count| (name.to_owned(), count)));
    }
    for (name, function) in PROGRAMS {
        loaded
            .attach_fexit(name)
            .with_context(|| format!("cannot attach to the end of {function}()"))?;
    }
    Ok(verified)
}

/// Before the programs count: those that count queries are to note them, unless they do, for the ends of sends will
/// be seen. So no query is counted twice.
pub fn note_from_now_on(ebpf: &mut Ebpf) -> Result<()> {
    if flag(ebpf)?.get(&0, 0)? != 0 {
        return Ok(());
    }
    // What others left in the state folder is over: nobody has seen the end of it.
    let sent = ebpf
        .map_mut("SENT")
        .ok_or_else(|| anyhow!("the eBPF object has no map SENT"))?;
    let mut sent: Array<_, Sent> = Array::try_from(sent)?;
    for place in 0..SENT_LEN {
        sent.set(place, Sent { task: 0, sk: 0 }, 0)
            .context("cannot write the map SENT")?;
    }
    flag(ebpf)?
        .set(0, 1, 0)
        .context("cannot write the map SENDS_WATCHED")
}

/// Once the programs count: nobody sees the ends of sends any more.
pub fn note_no_more(ebpf: &mut Ebpf) -> Result<()> {
    flag(ebpf)?
        .set(0, 0, 0)
        .context("cannot write the map SENDS_WATCHED")
}

fn flag(ebpf: &mut Ebpf) -> Result<Array<&mut MapData, u32>> {
    let map = ebpf
        .map_mut("SENDS_WATCHED")
        .ok_or_else(|| anyhow!("the eBPF object has no map SENDS_WATCHED"))?;
    Ok(Array::try_from(map)?)
}
