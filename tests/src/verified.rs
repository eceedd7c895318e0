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
/// Programs that another LLVM changes by more, and how many instructions they may be away: it made `walk` 3,892 of
/// 2,324.
const MORE: [(&str, u32); 2] = [("walk", 5_000), ("walk_round", 5_000)];

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
                    let may = (before * PERCENT / 100).max(more.map_or(AT_LEAST, |(_, may)| *may));
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

/// Panics where a program is further from what is recorded of the running kernel than it may be. `UPDATE=1` renews the
/// record instead. `without`: what tracer did without, as `TRACER_WITHOUT` names it; that is recorded by itself.
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
            "{release}: the kernel does not tell, as all before 5.16: nothing checked\n"
        ));
        return;
    }
    for (program, instructions) in found {
        assert!(*instructions < LIMIT / 2, "{program}: {instructions}");
    }
    let section = write(&BTreeMap::new(), &series, found);
    if env::var_os("UPDATE").is_some() {
        let renewed = write(&recorded, &series, found);
        fs::write(&path, renewed).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        say(&format!("{RECORDED} has now:\n{section}"));
        return;
    }
    let Some(recorded) = recorded.get(&series) else {
        say(&format!(
            "{RECORDED} has nothing of {series}: only the limit was checked. It would be:\n{section}"
        ));
        return;
    };
    let differences = differences(recorded, found);
    assert!(
        differences.is_empty(),
        "on {series}, not what {RECORDED} has:\n{}\nIf it must be so, renew it (UPDATE=1):\n{section}",
        differences.join("\n")
    );
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
            ("walk", 2_324),
        ]);
        let told = differences(&recorded, &far);
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(told[0].contains("100000 ->  120001  +20.0 %"), "{told:?}");
        assert!(told[1].starts_with("new"), "{told:?}");
        assert!(told[2].ends_with("gone"), "{told:?}");
        assert!(told[3].contains("+1005.0 %"), "{told:?}");
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
