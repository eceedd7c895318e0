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
    // All: the symbols of a module come in no order.
    let mut addresses = Vec::new();
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
    if starts.values().any(|address| *address == 0) {
        bail!("{PATH} hides the addresses: CAP_SYSLOG is missing, or kernel.kptr_restrict is 2");
    }
    Ok(starts
        .into_iter()
        .map(|(name, start)| {
            // A function ends where the next symbol begins.
            let after = addresses.iter().filter(|address| **address > start);
            (name, start..after.min().copied().unwrap_or(u64::MAX))
        })
        .collect())
}

fn symbol(line: &[u8]) -> Option<(u64, &[u8])> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let address = u64::from_str_radix(str::from_utf8(words.next()?).ok()?, 16).ok()?;
    let name = words.nth(1)?;
    let end = name.iter().position(u8::is_ascii_whitespace);
    Some((address, &name[..end.unwrap_or(name.len())]))
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
