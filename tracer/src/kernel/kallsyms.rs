//! Where functions of the kernel are, from /proc/kallsyms. The addresses are zero without
//! CAP_SYSLOG (or with kernel.kptr_restrict=2).

use std::{collections::BTreeMap, fs, ops::Range};

use anyhow::{Context as _, Result, bail};

const PATH: &str = "/proc/kallsyms";

/// Address ranges of those of `names` that the kernel has as functions of their own.
pub fn ranges<'a>(names: &[&'a str]) -> Result<BTreeMap<&'a str, Range<u64>>> {
    // Read once: the kernel makes its 100,000 lines anew for each reader.
    let text = fs::read(PATH).with_context(|| format!("cannot read {PATH}"))?;
    ranges_in(&text, names)
}

/// The same in the file's text.
pub(crate) fn ranges_in<'a>(
    text: &[u8],
    names: &[&'a str],
) -> Result<BTreeMap<&'a str, Range<u64>>> {
    let starts = starts(text, names);
    if starts.values().any(|address| *address == 0) {
        bail!("{PATH} hides the addresses: CAP_SYSLOG is missing, or kernel.kptr_restrict is 2");
    }
    Ok(ends(text, &starts))
}

/// Lines of address, kind, name, and for modules their name, with blanks between.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

fn address(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b' ').next()?;
    u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

fn name(line: &[u8]) -> Option<&[u8]> {
    let name = line.split(|byte| *byte == b' ').nth(2)?;
    name.split(|byte| *byte == b'\t').next()
}

fn starts<'a>(text: &[u8], names: &[&'a str]) -> BTreeMap<&'a str, u64> {
    let mut starts = BTreeMap::new();
    for line in lines(text) {
        if let Some(name) = name(line)
            && let Some(wanted) = names.iter().find(|wanted| wanted.as_bytes() == name)
            && let Some(address) = address(line)
        {
            starts.entry(*wanted).or_insert(address);
        }
    }
    starts
}

/// A function ends where the next symbol begins.
fn ends<'a>(text: &[u8], starts: &BTreeMap<&'a str, u64>) -> BTreeMap<&'a str, Range<u64>> {
    let mut ranges: BTreeMap<&str, Range<u64>> = starts
        .iter()
        .map(|(name, start)| (*name, *start..u64::MAX))
        .collect();
    for address in lines(text).filter_map(address) {
        for range in ranges.values_mut() {
            if address > range.start && address < range.end {
                range.end = address;
            }
        }
    }
    ranges
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
        let starts = starts(LINES.as_bytes(), &names);
        let ranges = ends(LINES.as_bytes(), &starts);
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
