//! Which tests run in the machines: the same binaries as on the host, picked by name.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::layer::Layers;
use crate::{setup::cross, sh};

/// What proves the main job on a kernel: files, or single tests of one as `FILE::TEST`. A machine
/// without hardware virtualisation needs some ten seconds for an agent's start alone, so one agent has all hooks.
const CORE: &[&str] = &["every_hook::what_each_pod_of_a_failing_node_is_charged_with_is_its_own"];

/// What proves the product where only machines can: files with a lab for each hook, the mechanisms, what survives, and
/// an outage. Not `incident_overflow`: it compares a forecast with the time that is left, which an emulated machine
/// makes up as it goes.
const PRODUCT: &[&str] = &[
    "capabilities",
    "connects",
    "dead_endpoints",
    "dns",
    "dns_causes",
    "doctor",
    "drops",
    "every_hook",
    "gc",
    "incident_dead_endpoint",
    "mechanisms",
    "mechanisms_old",
    "neigh",
    "refused",
    "restart",
    "restart_figures",
];

/// Which tests are picked.
#[derive(Clone, Copy, Debug)]
pub enum Tests<'a> {
    /// The main job on one more kernel, in a minute.
    Core,
    /// As much as a machine without a fit kernel of its own needs to believe in it.
    Product,
    /// Those of these files, and those whose name contains one of these.
    Named(&'a [String]),
}

impl Tests<'_> {
    /// What must be among them.
    fn list(self) -> &'static [&'static str] {
        match self {
            Self::Core => CORE,
            Self::Product => PRODUCT,
            Self::Named(_) => &[],
        }
    }

    fn fits(self, file: &str, test: &str) -> bool {
        match self {
            Self::Core | Self::Product => self.list().iter().any(|entry| names(entry, file, test)),
            Self::Named(filters) => {
                let other = !HOST_ONLY.contains(&file);
                filters
                    .iter()
                    .any(|filter| filter == file || other && test.contains(filter.as_str()))
            }
        }
    }
}

/// Is it this test, or its file, that an entry names?
fn names(entry: &str, file: &str, test: &str) -> bool {
    match entry.split_once("::") {
        Some((of, name)) => of == file && name == test,
        None => entry == file,
    }
}

/// What needs programs or services that have nothing to do with the kernel, and so runs on the host
/// only, unless its file is named: Prometheus, containerd, the chart, the image.
const HOST_ONLY: &[&str] = &[
    "dashboard",
    "image",
    "manifests",
    "node_problem_detector",
    "pods_runtime",
    "prometheus",
    "rules",
    "top_prometheus",
    "top_prometheus_access",
];

/// A test binary, and what to run of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Binary {
    /// Its file in `tests/tests`, without ending.
    pub file: String,
    /// The binary.
    pub path: PathBuf,
    /// The tests, by name.
    pub tests: Vec<String>,
}

/// Builds the tests and picks.
pub fn pick(wanted: Tests<'_>, layers: &Layers) -> Result<Vec<Binary>> {
    let mut suite = Vec::new();
    for (file, path) in build(layers)? {
        let tests = list(&path, layers)?;
        suite.push(Binary { file, path, tests });
    }
    let picked = choose(suite, wanted);
    let missing = unmet(wanted.list(), &picked);
    ensure!(
        missing.is_empty(),
        "{} of the list in xtask/src/vm/suite.rs: there is no such test; name it there as it is called",
        missing.join(", ")
    );
    if let Tests::Named(filters) = wanted {
        ensure!(
            !picked.is_empty(),
            "no test file or test has such a name: {}",
            filters.join(", ")
        );
    }
    Ok(picked)
}

/// These tests of a suite, as file and name.
pub fn only(suite: &[Binary], wanted: &[(&str, &str)]) -> Vec<Binary> {
    let files = suite.iter().map(|binary| Binary {
        file: binary.file.clone(),
        path: binary.path.clone(),
        tests: binary
            .tests
            .iter()
            .filter(|test| wanted.contains(&(&binary.file, test)))
            .cloned()
            .collect(),
    });
    files.filter(|binary| !binary.tests.is_empty()).collect()
}

/// Builds the end-to-end tests: their binaries by file.
fn build(layers: &Layers) -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo = cross::cargo(layers.arch);
    cargo
        .args(["test", "--package", "tests", "--tests", "--no-run"])
        .arg("--message-format=json-render-diagnostics")
        // What the compiler says goes to the user.
        .stderr(Stdio::inherit());
    let output = cargo
        .output()
        .with_context(|| format!("failed to start `{}`", sh::shown(&cargo)))?;
    ensure!(
        output.status.success(),
        "`{}` failed ({})",
        sh::shown(&cargo),
        output.status
    );
    Ok(binaries(&String::from_utf8_lossy(&output.stdout)))
}

/// Test binaries in cargo's messages (The Cargo Book, "External tools").
fn binaries(messages: &str) -> BTreeMap<String, PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| {
            message["reason"] == "compiler-artifact"
                && message["target"]["kind"][0] == "test"
                && message["profile"]["test"] == true
        })
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?;
            let path = message["executable"].as_str()?;
            Some((name.to_owned(), PathBuf::from(path)))
        })
        .collect()
}

fn list(binary: &Path, layers: &Layers) -> Result<Vec<String>> {
    let mut list = layers.run(binary)?;
    let listed = sh::output(list.args(["--list", "--format", "terse"]))?;
    Ok(listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect())
}

/// The entries of a list for which nothing was picked.
fn unmet(list: &[&'static str], picked: &[Binary]) -> Vec<&'static str> {
    let is_picked = |entry: &str| {
        picked
            .iter()
            .any(|b| b.tests.iter().any(|test| names(entry, &b.file, test)))
    };
    let unmet = list.iter().filter(|entry| !is_picked(entry));
    unmet.copied().collect()
}

fn choose(suite: Vec<Binary>, wanted: Tests<'_>) -> Vec<Binary> {
    suite
        .into_iter()
        .map(|mut binary| {
            binary.tests.retain(|test| wanted.fits(&binary.file, test));
            binary
        })
        .filter(|binary| !binary.tests.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn suite() -> Vec<Binary> {
        [
            ("neigh", &["ipv4_overflows", "ipv6_overflows"][..]),
            ("gc", &["forced"]),
            ("image", &["an_image_overflows"]),
        ]
        .map(|(file, tests)| Binary {
            file: file.to_owned(),
            path: PathBuf::from(file),
            tests: tests.iter().map(|test| (*test).to_owned()).collect(),
        })
        .into()
    }

    fn chosen(filters: &[&str]) -> Vec<String> {
        let filters: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
        choose(suite(), Tests::Named(&filters))
            .into_iter()
            .flat_map(|binary| binary.tests)
            .collect()
    }

    #[test]
    fn a_filter_is_a_file_or_part_of_a_test() {
        assert_eq!(chosen(&["gc"]), ["forced"]);
        assert_eq!(chosen(&["overflows"]), ["ipv4_overflows", "ipv6_overflows"]);
        assert_eq!(
            chosen(&["ipv4", "gc"]),
            ["forced", "ipv4_overflows"]
                .map(String::from)
                .iter()
                .rev()
                .cloned()
                .collect::<Vec<_>>()
        );
        assert_eq!(chosen(&["image"]), ["an_image_overflows"]);
        assert!(chosen(&["nothing"]).is_empty());
    }

    #[test]
    fn only_those_that_are_named_are_left() {
        let left = only(
            &suite(),
            &[("neigh", "ipv6_overflows"), ("gc", "ipv4_overflows")],
        );
        let left: Vec<_> = left
            .iter()
            .map(|b| (b.file.as_str(), &b.tests[..]))
            .collect();
        assert_eq!(left, [("neigh", &["ipv6_overflows".to_owned()][..])]);
    }

    #[test]
    fn an_entry_that_names_nothing_is_told() {
        let list = ["neigh", "neigh::ipv7_overflows", "gc::forced", "dns"];
        assert_eq!(unmet(&list, &suite()), ["neigh::ipv7_overflows", "dns"]);
    }

    #[test]
    fn what_is_listed_here_exists() {
        let folder = sh::root().join("tests/tests");
        for entry in CORE.iter().chain(PRODUCT) {
            let named = entry.split_once("::");
            let (file, test) = named.map_or((*entry, None), |(file, test)| (file, Some(test)));
            let path = folder.join(format!("{file}.rs"));
            let source =
                fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            if let Some(test) = test {
                assert!(source.contains(&format!("fn {test}(")), "{entry}");
            }
        }
        for file in HOST_ONLY {
            assert!(folder.join(format!("{file}.rs")).is_file(), "{file}");
        }
    }

    #[test]
    fn test_binaries_of_cargos_messages() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"tests"},"profile":{"test":true},"executable":"/t/tests-1"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"neigh"},"profile":{"test":true},"executable":"/t/neigh-2"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"tracer"},"profile":{"test":false},"executable":null}
{"reason":"build-finished","success":true}"#;
        let found = binaries(messages);
        assert_eq!(
            found,
            BTreeMap::from([("neigh".to_owned(), PathBuf::from("/t/neigh-2"))])
        );
    }
}
