//! The ends of sends: fexit at `udp_sendmsg()` and `udpv6_sendmsg()`, for the hook `dns`. The other half
//! is `tracer-ebpf/src/dns/unsent.rs`.
//!
//! Chosen at run time: where the kernel takes no such programs (no BPF trampolines, no function
//! tracer, a security module that forbids them), queries that never became a packet are not seen.
//! Kprobes could do the same, but take two breakpoints at each UDP send of the node, and CAP_SYS_ADMIN
//! where `kernel.perf_event_paranoid` is 3.
//!
//! They end with the agent, though what they count in outlives it (`--state-dir`): until the next one,
//! such queries are not seen.

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Btf as AyaBtf, Ebpf,
    maps::{Array, HashMap},
    programs::{FExit, Program},
};
use tracer_common::dns::Sent;

use super::{btf::Btf, load::explain};

/// Programs and the functions that they end with.
pub const PROGRAMS: [(&str, &str); 2] =
    [("udp_sent", "udp_sendmsg"), ("udpv6_sent", "udpv6_sendmsg")];

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

/// Loads and attaches both; gives the instructions that the verifier walked through, by program. Where
/// one cannot be, the kernel holds none of them.
pub fn watch(ebpf: &mut Ebpf) -> Result<Vec<(String, u32)>> {
    let result = try_watch(ebpf);
    if result.is_err() {
        tell_programs(ebpf, false)?;
        for (name, _) in PROGRAMS {
            // One that was not loaded needs no unloading.
            let _ = program(ebpf, name)?.unload();
        }
    }
    result
}

fn try_watch(ebpf: &mut Ebpf) -> Result<Vec<(String, u32)>> {
    // The library's own, for the ids of functions: read again, and dropped at once.
    let btf = AyaBtf::from_sys_fs().context("cannot read the kernel's BTF")?;
    let mut verified = Vec::new();
    for (name, function) in PROGRAMS {
        let program = program(ebpf, name)?;
        program
            .load(function, &btf)
            .map_err(|error| explain(name, error))?;
        let instructions = program.info()?.verified_instruction_count();
        verified.extend(instructions.map(|count| (name.to_owned(), count)));
    }
    // What an agent before this one left there is over.
    tell_programs(ebpf, false)?;
    let sent = ebpf
        .map_mut("SENT")
        .ok_or_else(|| anyhow!("the eBPF object has no map SENT"))?;
    let mut sent: HashMap<_, Sent, u32> = HashMap::try_from(sent)?;
    let over: Vec<Sent> = sent.keys().collect::<Result<_, _>>()?;
    for key in over {
        // It may have made room for another meanwhile.
        let _ = sent.remove(&key);
    }
    // Before they begin: no query is counted twice.
    tell_programs(ebpf, true)?;
    for (name, function) in PROGRAMS {
        program(ebpf, name)?
            .attach()
            .with_context(|| format!("cannot attach to the end of {function}()"))?;
    }
    Ok(verified)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut FExit> {
    match ebpf.program_mut(name) {
        Some(Program::FExit(program)) => Ok(program),
        _ => Err(anyhow!("the eBPF object has no fexit program {name}")),
    }
}

fn tell_programs(ebpf: &mut Ebpf, watched: bool) -> Result<()> {
    let map = ebpf
        .map_mut("SENDS_WATCHED")
        .ok_or_else(|| anyhow!("the eBPF object has no map SENDS_WATCHED"))?;
    let mut flag: Array<_, u32> = Array::try_from(map)?;
    flag.set(0, u32::from(watched), 0)
        .context("cannot write the map SENDS_WATCHED")
}
