//! What must be true of the eBPF object before it goes into the binary: the kernel's verifier and
//! tracer's loader would find out too, but on a user's machine.

use std::{collections::BTreeSet, fmt};

use anyhow::{Context as _, Result, bail, ensure};
use object::{
    Architecture, Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget,
    SectionKind,
    build::elf::{Builder, Section, SectionData},
    elf,
    read::elf::{ElfFile64, ElfSection64},
};

/// Every program and the kind of its section, by which the loader knows the program's type. None of
/// these types is given registers, whose layout aya's library has by architecture: one object is for
/// all architectures of a byte order (docs/kernels.md, arm64).
const PROGRAMS: &[(&str, &str)] = &[
    ("neigh_create", "raw_tp"),
    ("neigh_settle", "raw_tp"),
    ("neigh_cleanup", "raw_tp"),
    ("work_start", "raw_tp"),
    ("work_end", "raw_tp"),
    ("tables", "raw_tp"),
    ("walk", "raw_tp"),
    ("walk_round", "raw_tp"),
    ("dns_egress", "cgroup_skb/egress"),
    ("dns_ingress", "cgroup_skb/ingress"),
    ("dns_age", "raw_tp"),
    ("dns_age_one", "raw_tp"),
    ("udp_sent", "fexit/udp_sendmsg"),
    ("udpv6_sent", "fexit/udpv6_sendmsg"),
    ("kfree_skb", "raw_tp"),
    ("udp_fail_queue", "raw_tp"),
    ("conntrack_begin", "raw_tp"),
    ("count_drops", "raw_tp"),
    ("tcp_state", "raw_tp"),
    ("tcp_state_again", "raw_tp"),
    ("tcp_retransmit", "raw_tp"),
    ("tcp_retransmit_again", "raw_tp"),
    ("tcp_reset", "raw_tp"),
    ("tcp_reset_again", "raw_tp"),
    ("tcp_error", "raw_tp"),
    ("tcp_error_again", "raw_tp"),
    ("tcp_age", "raw_tp"),
    ("tcp_age_one", "raw_tp"),
    ("cgroup_mkdir", "raw_tp"),
];

/// Every map.
const MAPS: &[&str] = &[
    "ACTIVE",
    "NEIGH",
    "NEIGH_NODE",
    "NEIGH_LAST_FULL",
    "NEIGH_FORWARDED",
    "NEIGH_PEAK",
    "REFUSED",
    "FORCED",
    "EVICTED",
    "WALK",
    "ANSWERED",
    "PERIODIC_TASKS",
    "TABLES",
    "DNS",
    "DNS_NODE",
    "PEERS",
    "DNS_ZERO",
    "PENDING",
    "PENDING_NEAR",
    "FAR",
    "LOOKUP_ZERO",
    "ANSWERS",
    "EXPIRED",
    "PACKETS",
    "SOCKETS",
    "ENDPOINTS",
    "SERVED",
    "SERVED_NEAR",
    "REFUSED_QUERY",
    "QUESTION",
    "POD_ADDRESSES",
    "DROPS_WATCHED",
    "SENDS_WATCHED",
    "SENT",
    "UNSOLICITED",
    "RECEIVE_DROPS",
    "RECEIVE_PORTS",
    "DROPS",
    "TCP",
    "TCP_NODE",
    "CONNECTING",
    "TALKING",
    "TURNS",
    "DESTINATIONS",
    "ATTEMPTS",
    "BEHIND",
    "THIS_CPU",
    "CONNTRACK_REFUSALS",
    "REASONS",
    "DROPS_NODE",
    "RING",
    "CGROUPS",
    "RING_STATS",
    "RATE",
    "FULL",
    "QUOTAS",
    "STRANGERS",
];

/// Licences that the kernel's `license_is_gpl_compatible` takes.
const LICENCES: &[&str] = &[
    "GPL",
    "GPL v2",
    "GPL and additional rights",
    "Dual BSD/GPL",
    "Dual MIT/GPL",
    "Dual MPL/GPL",
];

/// What the object holds, for people.
#[derive(Debug)]
pub struct Summary {
    bytes: usize,
    instructions: u64,
    programs: usize,
    maps: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes, {} programs of {} instructions in all, {} maps",
            self.bytes, self.programs, self.instructions, self.maps
        )
    }
}

/// The object without its DWARF, which is four fifths of it and which neither the loader nor the
/// kernel reads; they have BTF. The linker's own output keeps it.
pub fn strip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut object = Builder::read(bytes).context("the object cannot be read")?;
    for section in &mut object.sections {
        let name = section.name.to_string();
        let name = name.strip_prefix(".rel").unwrap_or(&name);
        section.delete = name.starts_with(".debug_");
    }
    object.delete_orphans();
    // LLVM keeps the names of sections among those of symbols; the writer wants them apart.
    let apart = |section: &Section| matches!(section.data, SectionData::SectionString);
    if !object.sections.iter().any(apart) {
        let names = object.sections.add();
        names.name = ".shstrtab".into();
        names.sh_type = elf::SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    object
        .write(&mut stripped)
        .context("the object cannot be written")?;
    Ok(stripped)
}

pub fn check(bytes: &[u8]) -> Result<Summary> {
    check_for(bytes, PROGRAMS, MAPS)
}

fn check_for(bytes: &[u8], programs: &[(&str, &str)], maps: &[&str]) -> Result<Summary> {
    let file = ElfFile64::<Endianness>::parse(bytes).context("it is no 64-bit ELF file")?;
    ensure!(
        file.architecture() == Architecture::Bpf,
        "it is built for {:?}, not for BPF",
        file.architecture()
    );
    ensure!(
        file.is_little_endian() == cfg!(target_endian = "little"),
        "its byte order is not this machine's"
    );
    check_licence(&file)?;
    ensure!(
        file.section_by_name(".BTF").is_some(),
        "it has no .BTF section: bpf-linker ran without --btf, or the crate has no debug information"
    );

    let present = names_by_section(&file)?;
    let mut wrong = Vec::new();
    for (program, kind) in programs {
        match present.iter().find(|(name, _)| name == program) {
            None => wrong.push(format!("program {program} is missing")),
            Some((_, section)) if !is_of_kind(section, kind) => {
                wrong.push(format!(
                    "program {program} is in section {section}, not {kind}"
                ));
            }
            Some(_) => {}
        }
    }
    let found: BTreeSet<&str> = present
        .iter()
        .filter(|(_, section)| section == "maps" || section == ".maps")
        .map(|(name, _)| name.as_str())
        .collect();
    for map in maps.iter().filter(|map| !found.contains(*map)) {
        wrong.push(format!("map {map} is missing"));
    }

    wrong.extend(panics(&file));
    let mut instructions = 0;
    for section in file
        .sections()
        .filter(|section| section.kind() == SectionKind::Text)
    {
        instructions += section.size() / 8;
        wrong.extend(bad_calls(&file, &section)?);
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(Summary {
        bytes: bytes.len(),
        instructions,
        programs: programs.len(),
        maps: found.len(),
    })
}

fn check_licence(file: &ElfFile64) -> Result<()> {
    let section = file
        .section_by_name("license")
        .context("it has no section `license`; the kernel would refuse GPL-only helpers")?;
    let data = section.data().context("its licence cannot be read")?;
    let licence = String::from_utf8_lossy(data);
    let licence = licence.trim_end_matches('\0');
    ensure!(
        LICENCES.contains(&licence),
        "its licence `{licence}` is not compatible with the GPL"
    );
    Ok(())
}

/// The names that the object defines, each with its section.
fn names_by_section(file: &ElfFile64) -> Result<Vec<(String, String)>> {
    let mut names = Vec::new();
    for symbol in file.symbols() {
        if let Some(index) = symbol.section_index() {
            let section = file.section_by_index(index)?;
            names.push((symbol.name()?.to_owned(), section.name()?.to_owned()));
        }
    }
    Ok(names)
}

/// `raw_tp` and `raw_tp/kfree_skb` are both of the kind `raw_tp`.
fn is_of_kind(section: &str, kind: &str) -> bool {
    section
        .strip_prefix(kind)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What is left of `core`'s panics: the verifier refuses a call that does not return.
fn panics(file: &ElfFile64) -> Option<String> {
    let left: Vec<&str> = file
        .symbols()
        .filter_map(|symbol| symbol.name().ok())
        .filter(|name| name.contains("4core9panicking"))
        .collect();
    (!left.is_empty()).then(|| {
        format!(
            "a panic is left that the compiler could not rule out, such as an unchecked index: {}",
            left.join(", ")
        )
    })
}

/// Calls that lead nowhere, because the linker did not find what is called.
fn bad_calls(file: &ElfFile64, section: &ElfSection64<'_, '_, Endianness>) -> Result<Vec<String>> {
    const CALL: u8 = 0x85;
    const LOAD_64: u8 = 0x18; // the only instruction of two slots

    let name = section.name()?;
    let mut bad = Vec::new();
    let mut relocated = BTreeSet::new();
    for (offset, relocation) in section.relocations() {
        relocated.insert(offset);
        if let RelocationTarget::Symbol(index) = relocation.target() {
            let symbol = file.symbol_by_index(index)?;
            if symbol.is_undefined() {
                bad.push(format!("{} in {name} is undefined", symbol.name()?));
            }
        }
    }
    let data = section.data()?;
    let mut at = 0;
    while let Some(instruction) = data.get(at..at + 8) {
        let operation = instruction[0];
        let immediate = i32::from_ne_bytes(instruction[4..8].try_into()?);
        // No source register: a helper, and there is no helper 0. Else a function of the object,
        // and -1 is a place that was never filled in.
        let helper = instruction[1] == 0;
        let nowhere = immediate == -1 || (helper && immediate == 0);
        if operation == CALL && nowhere && !relocated.contains(&(at as u64)) {
            bad.push(format!(
                "a call to nothing at instruction {} of {name}",
                at / 8
            ));
        }
        at += if operation == LOAD_64 { 16 } else { 8 };
    }
    Ok(bad)
}

#[cfg(test)]
mod tests;
