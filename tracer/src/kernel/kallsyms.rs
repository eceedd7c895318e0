//! Where functions of the kernel are, from /proc/kallsyms. The addresses are zero without
//! CAP_SYSLOG (or with kernel.kptr_restrict=2).

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    ops::Range,
};

use anyhow::{Context as _, Result, bail};

const PATH: &str = "/proc/kallsyms";

/// Address ranges of those of `names` that the kernel has as functions of their own.
pub fn ranges<'a>(names: &[&'a str]) -> Result<BTreeMap<&'a str, Range<u64>>> {
    let open = || -> Result<_> {
        Ok(BufReader::new(
            File::open(PATH).with_context(|| format!("cannot read {PATH}"))?,
        ))
    };
    let starts = starts(open()?, names)?;
    if starts.values().any(|address| *address == 0) {
        bail!("{PATH} hides the addresses: CAP_SYSLOG is missing, or kernel.kptr_restrict is 2");
    }
    ends(open()?, &starts)
}

/// One line: address, kind, name, and for modules their name.
fn parse(line: &str) -> Option<(u64, &str)> {
    let mut fields = line.split_ascii_whitespace();
    let address = u64::from_str_radix(fields.next()?, 16).ok()?;
    let name = fields.nth(1)?;
    Some((address, name))
}

fn starts<'a>(lines: impl BufRead, names: &[&'a str]) -> Result<BTreeMap<&'a str, u64>> {
    let mut starts = BTreeMap::new();
    for line in lines.lines() {
        let line = line.context("cannot read /proc/kallsyms")?;
        if let Some((address, name)) = parse(&line)
            && let Some(wanted) = names.iter().find(|wanted| **wanted == name)
        {
            starts.entry(*wanted).or_insert(address);
        }
    }
    Ok(starts)
}

/// A function ends where the next symbol begins.
fn ends<'a>(
    lines: impl BufRead,
    starts: &BTreeMap<&'a str, u64>,
) -> Result<BTreeMap<&'a str, Range<u64>>> {
    let mut ranges: BTreeMap<&str, Range<u64>> = starts
        .iter()
        .map(|(name, start)| (*name, *start..u64::MAX))
        .collect();
    for line in lines.lines() {
        let line = line.context("cannot read /proc/kallsyms")?;
        if let Some((address, _)) = parse(&line) {
            for range in ranges.values_mut() {
                if address > range.start && address < range.end {
                    range.end = address;
                }
            }
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "\
ffffffff81000100 T ___neigh_create
ffffffff81000400 t neigh_periodic_work
ffffffff81000300 t other
ffffffff81000900 T last [module]
";

    #[test]
    fn a_function_ends_where_the_next_begins() {
        let starts = starts(
            LINES.as_bytes(),
            &["___neigh_create", "neigh_periodic_work", "none"],
        )
        .unwrap();
        let ranges = ends(LINES.as_bytes(), &starts).unwrap();
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
