//! The plugin of node-problem-detector: exit code and line, as that program would run it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tests::neigh::{FIRST_SILENT, burst};
use tests::overflow::{LIMITS, Overflow};
use tests::process::{Ended, run, tracer, tracer_path};
use tests::wait::ensure;
use tests::{Family, Lab, Thresholds, eventually};

const SOON: Duration = Duration::from_secs(10);
/// The shells of most node images: Debian's `sh`, and busybox'.
const SHELLS: [&[&str]; 2] = [&["sh"], &["busybox", "sh"]];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/node-problem-detector")
}

fn configuration() -> Value {
    let path = folder().join("tracer.json");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("the configuration is JSON")
}

/// The check, with `TRACER` and `TRACER_AGENT` set; its one line of at most the configured length.
fn check(shell: &[&str], problem: &str, program: &str, agent: &str) -> (Option<i32>, String) {
    let mut command = match shell[0] {
        "busybox" => Command::new(tests::unpacked::busybox()),
        shell => Command::new(shell),
    };
    command
        .args(&shell[1..])
        .arg(folder().join("tracer.sh"))
        .arg(problem)
        .env("TRACER", program)
        .env("TRACER_AGENT", agent);
    let Ended {
        status,
        stdout,
        stderr,
        took,
    } = run(&mut command, SOON);
    assert_eq!(stderr, "", "{command:?}");
    assert!(took < Duration::from_secs(5), "{command:?} took {took:?}");
    let line = stdout.strip_suffix('\n').expect("a line");
    assert!(!line.is_empty() && !line.contains('\n'), "{stdout}");
    let longest = configuration()["pluginConfig"]["max_output_length"].clone();
    let longest = longest.as_u64().expect("a number");
    assert!(line.len() as u64 <= longest, "more than {longest}: {line}");
    (status.code(), line.to_owned())
}

/// The first sentence of the verdict.
fn sentence(agent: &str) -> String {
    let ended = run(
        tracer().args(["why", "--output", "json", "--agent", agent]),
        SOON,
    );
    let verdict: Value = serde_json::from_str(&ended.stdout).expect("the verdict is JSON");
    verdict["sentences"][0].as_str().expect("text").to_owned()
}

#[test]
fn a_sick_node_gets_its_condition_and_the_reason() {
    let mut lab = Lab::new();
    let scene = Overflow::new(&lab, &["--window", "10s"]);
    let program = tracer_path();
    let program = program.to_str().expect("the path is text");
    let agent = scene.agent.address();
    for shell in SHELLS {
        for problem in ["sick", "warning"] {
            let (code, line) = check(shell, problem, program, &agent);
            assert_eq!(code, Some(0), "a healthy node: {line}");
            assert!(line.starts_with("Nothing is wrong"), "{line}");
        }
    }

    // Three quarters of the table: nothing is refused yet.
    let limits = Thresholds::set(lab.lock(), LIMITS);
    burst(&scene.greedy, Family::V4, FIRST_SILENT, 45);
    eventually(SOON, || {
        let (code, line) = check(SHELLS[0], "warning", program, &agent);
        ensure(code == Some(1), || format!("{code:?}: {line}"))
    });
    assert_eq!(check(SHELLS[0], "sick", program, &agent).0, Some(0));

    scene.strike();
    eventually(SOON, || {
        let (code, line) = check(SHELLS[0], "sick", program, &agent);
        ensure(code == Some(1), || format!("{code:?}: {line}"))
    });
    for shell in SHELLS {
        // The figures in it move; what it begins with does not.
        let (code, line) = check(shell, "sick", program, &agent);
        assert_eq!(code, Some(1), "{line}");
        let told = sentence(&agent);
        assert_eq!(line[..40], told[..40]);
        assert!(line.starts_with("IPv4 neighbour table full"), "{line}");
    }
    drop(limits);

    // The window passes, and with it the problem.
    eventually(Duration::from_secs(30), || {
        let (code, line) = check(SHELLS[0], "sick", program, &agent);
        ensure(code == Some(0), || format!("{code:?}: {line}"))
    });
    scene.agent.stop_cleanly();
    for shell in SHELLS {
        let (code, line) = check(shell, "sick", program, &agent);
        assert_eq!(code, Some(2), "without an agent: {line}");
        assert!(line.contains("agent"), "{line}");
    }
}

/// What a lab does not have at hand: names with quotes, hooks that are missing, another program.
#[test]
fn what_is_no_clear_verdict_is_unknown() {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let fake = |name: &str, said: &str| {
        let path = folder.path().join(name);
        fs::write(&path, format!("cat <<'END'\n{said}\nEND\n")).expect("files can be written");
        format!("sh {}", path.display())
    };
    let verdict_by = |rule: &str, weight: &str, health: &str, sentence: &str, unknown: &[&str]| {
        let verdict = json!({
            "node": "n1", "time": "2026-01-01T00:00:00Z", "health": health,
            "sentences": [sentence, "Another."], "next": "tracer top",
            "findings": [
                {"rule": "x", "weight": "node", "sentence": "  \"health\": \"sick\",", "figures": {"n": 1}},
                {"rule": rule, "weight": weight, "sentence": sentence, "next": "x"},
            ],
            "unknown": unknown,
        });
        serde_json::to_string_pretty(&verdict).expect("JSON")
    };
    let verdict = |health: &str, sentence: &str, unknown: &[&str]| {
        let weight = if health == "sick" {
            "node"
        } else {
            "elsewhere"
        };
        verdict_by("table-full", weight, health, sentence, unknown)
    };
    let odd = r#"lookups of "a\b" die (5 %, 1 of 20), {so}."#;
    let cases = [
        (verdict("sick", odd, &[]), Some(1), odd),
        (
            verdict("fine", "Nothing, really.", &[]),
            Some(0),
            "Nothing, really.",
        ),
        (
            verdict(
                "fine",
                "Sees nothing.",
                &["lookups: the hook dns is unavailable: no BTF"],
            ),
            Some(2),
            "Sees nothing.",
        ),
        (
            verdict(
                "sick",
                "It is.",
                &["lookups: the hook dns is unavailable: no BTF"],
            ),
            Some(1),
            "It is.",
        ),
        (
            // A pod's own trouble is no reason to cordon the node.
            verdict_by(
                "dns-killed-here",
                "node",
                "sick",
                "A policy refuses lookups.",
                &[],
            ),
            Some(0),
            "A policy refuses lookups.",
        ),
        (
            // Nor is a table that only fills, beside it.
            verdict_by("table-fills", "omen", "sick", "It fills.", &[]),
            Some(0),
            "It fills.",
        ),
        (
            "{}".to_owned(),
            Some(2),
            "tracer why wrote something else than a verdict",
        ),
    ];
    for (n, (said, code, line)) in cases.iter().enumerate() {
        let program = fake(&n.to_string(), said);
        for shell in SHELLS {
            assert_eq!(
                check(shell, "sick", &program, "none"),
                (*code, (*line).to_owned())
            );
        }
    }

    // A table that thrashes costs time and loses nothing yet: a warning, for more is to come.
    let thrashes = verdict_by("table-thrashes", "node", "sick", "It thrashes.", &[]);
    let program = fake("thrashes", &thrashes);
    for shell in SHELLS {
        for (problem, code) in [("sick", 0), ("warning", 1)] {
            assert_eq!(
                check(shell, problem, &program, "none"),
                (Some(code), "It thrashes.".to_owned()),
                "{problem}"
            );
        }
    }
}

/// As node-problem-detector reads it.
#[test]
fn its_configuration_names_what_there_is() {
    let configuration = configuration();
    let rules = configuration["rules"].as_array().expect("rules");
    assert_eq!(rules.len(), 2);
    for rule in rules {
        let script = Path::new(rule["path"].as_str().expect("a path"));
        let script = folder().join(script.file_name().expect("a name"));
        assert!(script.is_file(), "{}", script.display());
        let problem = rule["args"][0].as_str().expect("an argument");
        assert!(["sick", "warning"].contains(&problem), "{problem}");
        if rule["type"] == "permanent" {
            assert_eq!(rule["condition"], configuration["conditions"][0]["type"]);
        }
    }
}
