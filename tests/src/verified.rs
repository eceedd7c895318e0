//! How many instructions the verifier walked through for each program, as recorded for each series of
//! kernels: what grows shows in review, before it comes near the kernel's limit.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;

use crate::kubernetes::repository;

/// Instructions by program.
pub type Instructions = BTreeMap<String, u32>;

/// `BPF_COMPLEXITY_LIMIT_INSNS` (include/linux/bpf.h, since 5.2).
pub const LIMIT: u32 = 1_000_000;
/// So much a program may be away from what is recorded, per cent: patch releases of a kernel move the
/// verifier a little, another LLVM moves the program (22.1's builds differ by 7 % in the largest).
const PERCENT: u32 = 20;
/// And so many instructions in any case.
const AT_LEAST: u32 = 200;
/// Programs that another LLVM changes by more, and how far they may be away, per cent: it made `walk` 3,892 of 2,324.
const MORE: [(&str, u32); 1] = [("walk", 75)];
/// So many times what is recorded of another series a program may come to: the verifier of 6.12 walks through 2.8
/// times as much of `walk` as that of 6.1.
const TIMES: u32 = 4;

/// What is recorded of each series of kernels.
const RECORDED: &str = "tests/verified.toml";

/// `6.12` of `6.12.107+deb12-cloud-amd64`; other architectures are named: `6.12 aarch64`.
pub fn series(release: &str, arch: &str) -> String {
    let mut parts = release.split(['.', '-', '+']);
    let parts = [parts.next(), parts.next()];
    let series = parts.map(Option::unwrap_or_default).join(".");
    if arch == "x86_64" {
        series
    } else {
        format!("{series} {arch}")
    }
}

/// What is recorded, by series.
pub fn parse(text: &str) -> Result<BTreeMap<String, Instructions>, String> {
    toml::from_str(text).map_err(|e| e.to_string())
}

/// The file, with these in the place of what it has of a series.
pub fn write(
    recorded: &BTreeMap<String, Instructions>,
    series: &str,
    found: &Instructions,
) -> String {
    let mut all = recorded.clone();
    all.insert(series.to_owned(), found.clone());
    let mut text = HEAD.to_owned();
    for (series, programs) in &all {
        let _ = writeln!(text, "\n[\"{series}\"]"); // a String takes all
        for (program, instructions) in programs {
            let _ = writeln!(text, "{program} = {instructions}");
        }
    }
    text
}

const HEAD: &str = "\
# Instructions that the verifier walks through, by series of kernels and program; the limit is 1,000,000.
# Renew it for the running kernel with
#     UPDATE=1 cargo test -p tests --test programs verified
# and look at what grew.
";

/// One line for each program that is further from what is recorded than it may be.
pub fn differences(recorded: &Instructions, found: &Instructions) -> Vec<String> {
    let programs: BTreeSet<&String> = recorded.keys().chain(found.keys()).collect();
    programs
        .into_iter()
        .filter_map(
            |program| match (recorded.get(program), found.get(program)) {
                (Some(before), Some(now)) => {
                    let more = MORE.iter().find(|(name, _)| name == program);
                    let percent = more.map_or(PERCENT, |(_, percent)| *percent);
                    let may = (before * percent / 100).max(AT_LEAST);
                    let change = (f64::from(*now) / f64::from(*before) - 1.0) * 100.0;
                    (before.abs_diff(*now) > may)
                        .then(|| format!("{program:<20} {before:>7} -> {now:>7}  {change:+.1} %"))
                }
                (Some(before), None) => Some(format!("{program:<20} {before:>7} -> gone")),
                (None, now) => Some(format!("{program:<20}     new -> {:>7}", now?)),
            },
        )
        .collect()
}

/// The record that tells most of a series without one of its own: of the same architecture and what tracer does
/// without, the nearest before; where there is none, the nearest behind.
fn nearest<'a>(
    recorded: &'a BTreeMap<String, Instructions>,
    series: &str,
) -> Option<(&'a str, &'a Instructions)> {
    let (wanted, kind) = numbers(series)?;
    let mut same: Vec<_> = recorded
        .iter()
        .filter_map(|(name, programs)| {
            let (version, other) = numbers(name)?;
            (other == kind).then_some((version, name.as_str(), programs))
        })
        .collect();
    same.sort_by_key(|(version, ..)| *version);
    let before = same.iter().rfind(|(version, ..)| *version < wanted);
    let (_, name, programs) = before.or_else(|| same.first())?;
    Some((*name, *programs))
}

/// `6.18 aarch64` as its numbers, in their order, and the rest.
fn numbers(series: &str) -> Option<((u32, u32), &str)> {
    let (version, kind) = series.split_once(' ').unwrap_or((series, ""));
    let (major, minor) = version.split_once('.')?;
    Some(((major.parse().ok()?, minor.parse().ok()?), kind))
}

/// One line for each program that is far beyond what is recorded of another series. What only one of them has is a
/// matter of the kernel.
fn grown(recorded: &Instructions, found: &Instructions) -> Vec<String> {
    recorded
        .iter()
        .filter_map(|(program, before)| {
            let now = found.get(program)?;
            (*now > before * TIMES + AT_LEAST)
                .then(|| format!("{program:<20} {before:>7} -> {now:>7}"))
        })
        .collect()
}

/// Panics where a program is further from what is recorded of the running kernel than it may be. `UPDATE=1` renews the
/// record instead. A kernel without a record is compared with the nearest, within a wider bound: nothing is wrong with
/// tracer because its kernel is new. `without`: what tracer did without, as `TRACER_WITHOUT` names it; that is recorded
/// by itself.
pub fn check(without: &str, found: &Instructions) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("it can be read");
    let mut series = series(release.trim(), env::consts::ARCH);
    if !without.is_empty() {
        series = format!("{series} without {without}");
    }
    let path = repository(RECORDED);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let recorded = parse(&text).unwrap_or_else(|e| panic!("{RECORDED}: {e}"));
    if found.is_empty() {
        assert!(
            !recorded.contains_key(&series),
            "{RECORDED} has {series}, and nothing was told"
        );
        say(&format!(
            "{release}: before 5.16 no kernel tells of a loaded program: that they load was checked, under the \
             verifier's own limit\n"
        ));
        return;
    }
    // Stand-ins are tried on kernels that they are not for, of which 6.1 takes more than half.
    let most = if without.is_empty() {
        LIMIT / 2
    } else {
        LIMIT / 4 * 3
    };
    for (program, instructions) in found {
        assert!(*instructions < most, "{program}: {instructions}");
    }
    let section = write(&BTreeMap::new(), &series, found);
    if env::var_os("UPDATE").is_some() {
        let renewed = write(&recorded, &series, found);
        fs::write(&path, renewed).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        say(&format!("{RECORDED} has now:\n{section}"));
        return;
    }
    let Some(of_series) = recorded.get(&series) else {
        check_without_record(&recorded, &series, found, &section);
        return;
    };
    let differences = differences(of_series, found);
    assert!(
        differences.is_empty(),
        "on {series}, not what {RECORDED} has:\n{}\nIf it must be so, renew it (UPDATE=1):\n{section}",
        differences.join("\n")
    );
}

/// The same for a series of which nothing is recorded; `section` is what would be.
fn check_without_record(
    recorded: &BTreeMap<String, Instructions>,
    series: &str,
    found: &Instructions,
    section: &str,
) {
    let Some((other, programs)) = nearest(recorded, series) else {
        say(&format!(
            "{RECORDED} has nothing like {series}: only the limit was checked. It would be:\n{section}"
        ));
        return;
    };
    let grown = grown(programs, found);
    assert!(
        grown.is_empty(),
        "{RECORDED} has nothing of {series}, and these are beyond {TIMES} times what it has of {other}:\n{}\nIf it \
         must be so, record it (UPDATE=1):\n{section}",
        grown.join("\n")
    );
    say(&format!(
        "{RECORDED} has nothing of {series}: compared with {other}, of which each program may be {TIMES} times. It \
         would be:\n{section}"
    ));
}

/// Past the harness, which keeps what a test that passes says.
fn say(text: &str) {
    std::io::stderr()
        .write_all(text.as_bytes())
        .expect("stderr can be written");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(some: &[(&str, u32)]) -> Instructions {
        some.iter()
            .map(|(name, n)| ((*name).to_owned(), *n))
            .collect()
    }

    #[test]
    fn a_series_is_the_first_two_numbers() {
        let amd64 = |release| series(release, "x86_64");
        assert_eq!(amd64("6.12.107+deb12-cloud-amd64"), "6.12");
        assert_eq!(amd64("6.1.0-56-cloud-amd64"), "6.1");
        assert_eq!(amd64("7.0-rc1"), "7.0");
        assert_eq!(series("6.1.0-56-arm64", "aarch64"), "6.1 aarch64");
    }

    #[test]
    fn small_changes_pass_and_others_are_told() {
        let recorded = programs(&[("big", 100_000), ("small", 20), ("old", 5), ("walk", 2_324)]);
        let near = programs(&[
            ("big", 120_000),
            ("small", 220),
            ("old", 5),
            ("walk", 3_892),
        ]);
        assert_eq!(differences(&recorded, &near), [""; 0]);
        let far = programs(&[
            ("big", 120_001),
            ("small", 221),
            ("new", 7),
            ("walk", 4_068),
        ]);
        let told = differences(&recorded, &far);
        assert_eq!(told.len(), 5, "{told:?}");
        assert!(told[0].contains("100000 ->  120001  +20.0 %"), "{told:?}");
        assert!(told[1].starts_with("new"), "{told:?}");
        assert!(told[2].ends_with("gone"), "{told:?}");
        assert!(told[3].contains("+1005.0 %"), "{told:?}");
        assert!(told[4].starts_with("walk "), "{told:?}");
    }

    #[test]
    fn a_series_without_a_record_has_a_nearest_one() {
        let names = ["6.1", "6.12", "6.12 aarch64", "6.18 without a"];
        let recorded: BTreeMap<_, _> = names
            .map(|name| (name.to_owned(), programs(&[])))
            .into_iter()
            .collect();
        for (series, near) in [
            ("6.19", Some("6.12")),
            ("6.6", Some("6.1")),
            ("7.0 aarch64", Some("6.12 aarch64")),
            ("5.17", Some("6.1")),
            ("6.1 without a", Some("6.18 without a")),
            ("6.1 without b", None),
            ("", None),
        ] {
            let found = nearest(&recorded, series).map(|(name, _)| name);
            assert_eq!(found, near, "{series}");
        }
    }

    #[test]
    fn another_series_may_take_more_but_not_any_number() {
        let recorded = programs(&[("big", 100_000), ("walk", 2_664), ("old", 5)]);
        let new = programs(&[("big", 130_000), ("walk", 7_430), ("new", 90_000)]);
        assert_eq!(grown(&recorded, &new), [""; 0]);
        let far = programs(&[("big", 400_201), ("walk", 10_856)]);
        let told = grown(&recorded, &far);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].ends_with("100000 ->  400201"), "{told:?}");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let old = BTreeMap::from([("6.1".to_owned(), programs(&[("a", 1)]))]);
        let found = programs(&[("a", 2), ("b", 3)]);
        let text = write(&old, "6.18 aarch64", &found);
        let mut all = old.clone();
        all.insert("6.18 aarch64".to_owned(), found);
        assert_eq!(parse(&text), Ok(all));
    }
}
