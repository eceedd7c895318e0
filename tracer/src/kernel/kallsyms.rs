//! Where functions of the kernel are, from /proc/kallsyms. The addresses are zero without
//! CAP_SYSLOG (or with kernel.kptr_restrict=2).

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    ops::Range,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow, bail};
use memchr::memchr2;

const PATH: &str = "/proc/kallsyms";

/// Address ranges of functions, by name: of those that the kernel has as functions of their own.
pub type Ranges = BTreeMap<&'static str, Range<u64>>;

/// The file being read, beside other work: the kernel makes its lines anew for each reader,
/// which takes it 50 ms.
pub struct Reading(std::io::Result<JoinHandle<Result<Ranges>>>);

impl Reading {
    /// Begins to look for these.
    pub fn of(names: Vec<&'static str>) -> Self {
        Self(thread::Builder::new().spawn(move || {
            let file = File::open(PATH).with_context(|| format!("cannot open {PATH}"))?;
            ranges_in(BufReader::new(file), &names)
        }))
    }

    /// Waits for the end.
    pub fn ranges(self) -> Result<Ranges> {
        let thread = self.0.context("cannot start a thread")?;
        let read = thread.join();
        read.unwrap_or_else(|_| Err(anyhow!("{PATH} was not read to its end")))
    }
}

/// The same in a text of lines of address, kind, name, and for modules their name, with blanks between.
pub(crate) fn ranges_in(mut text: impl BufRead, names: &[&'static str]) -> Result<Ranges> {
    let mut starts = BTreeMap::new();
    // All: the symbols of a module come in no order. As they stand there, for only few are ever numbers: there are
    // two hundred thousand, and each start waits for them.
    let mut addresses: Vec<Address> = Vec::new();
    let mut line = Vec::new();
    while text
        .read_until(b'\n', &mut line)
        .with_context(|| format!("cannot read {PATH}"))?
        > 0
    {
        if let Some((address, name)) = symbol(&line) {
            if let Some(wanted) = names.iter().find(|wanted| wanted.as_bytes() == name) {
                starts.entry(*wanted).or_insert(address);
            }
            addresses.push(address);
        }
        line.clear();
    }
    if starts.values().any(|address| *address == HIDDEN) {
        bail!("{PATH} hides the addresses: CAP_SYSLOG is missing, or kernel.kptr_restrict is 2");
    }
    let mut ranges = Ranges::new();
    for (name, start) in starts {
        // A function ends where the next symbol begins.
        let after = addresses.iter().filter(|address| **address > start).min();
        let end = after.copied().map_or(Some(u64::MAX), number);
        let bounds = number(start).zip(end);
        let (start, end) = bounds.with_context(|| format!("{PATH} has no address of {name}"))?;
        ranges.insert(name, start..end);
    }
    Ok(ranges)
}

/// Sixteen hexadecimal digits (`%px` in `s_show`, kernel/kallsyms.c), which compare as their numbers do.
type Address = [u8; 16];

const HIDDEN: Address = [b'0'; 16];

fn number(address: Address) -> Option<u64> {
    u64::from_str_radix(str::from_utf8(&address).ok()?, 16).ok()
}

/// Of a line: the address, and the name behind blank, kind, blank.
fn symbol(line: &[u8]) -> Option<(Address, &[u8])> {
    let (address, rest) = line.split_first_chunk()?;
    let name = rest.get(3..)?;
    let end = memchr2(b'\t', b'\n', name).unwrap_or(name.len());
    Some((*address, &name[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "\
ffffffff81000100 T ___neigh_create
ffffffff81000400 t neigh_periodic_work
ffffffff81000300 t other
ffffffff81000900 T last	[module]
";

    #[test]
    fn a_function_ends_where_the_next_begins() {
        let names = ["___neigh_create", "neigh_periodic_work", "none", "last"];
        let ranges = ranges_in(LINES.as_bytes(), &names).unwrap();
        assert_eq!(ranges["last"].start, 0xffff_ffff_8100_0900);
        assert_eq!(
            ranges["___neigh_create"],
            0xffff_ffff_8100_0100..0xffff_ffff_8100_0300
        );
        assert_eq!(
            ranges["neigh_periodic_work"],
            0xffff_ffff_8100_0400..0xffff_ffff_8100_0900
        );
        assert!(!ranges.contains_key("none"));
    }
}
