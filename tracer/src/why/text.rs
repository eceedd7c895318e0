//! A verdict for people.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Health, Verdict};
use crate::output::printable;

/// Width that the sentences are broken at, so that they read well on any terminal.
const WIDTH: usize = 100;

/// The sentences, what they rest on, what is not known, and the next command.
pub(crate) fn text(verdict: &Verdict) -> String {
    let mut out = String::new();
    let health = match verdict.health {
        Health::Fine => "fine",
        Health::FailsElsewhere => "fails, but not here",
        Health::Warning => "warning",
        Health::Sick => "sick",
    };
    let of = match &verdict.pod {
        Some(pod) => format!("pod {pod} on node {}", verdict.node),
        None => format!("node {}", verdict.node),
    };
    line(&mut out, "", &format!("{of}: {health}"));
    for sentence in &verdict.sentences {
        line(&mut out, "  ", sentence);
    }
    if !verdict.findings.is_empty() {
        line(&mut out, "", "rests on:");
        for finding in &verdict.findings {
            let figures: Vec<String> = finding
                .figures
                .iter()
                .map(|(name, value)| format!("{name}={}", plain(value)))
                .collect();
            line(
                &mut out,
                "  ",
                &format!("{}: {}", finding.rule, figures.join(" ")),
            );
        }
    }
    if !verdict.unknown.is_empty() {
        line(&mut out, "", "cannot know:");
        for unknown in &verdict.unknown {
            line(&mut out, "  ", unknown);
        }
    }
    // Never broken: it is to be copied.
    writeln!(out, "next: {}", printable(&verdict.next)).expect("a String takes every text");
    out
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A text broken into lines of at most [`WIDTH`], the later ones indented by two more.
fn line(out: &mut String, indent: &str, text: &str) {
    let mut column = indent.len();
    out.push_str(indent);
    for (i, word) in printable(text).split(' ').enumerate() {
        if i > 0 && column + 1 + word.len() > WIDTH {
            out.push('\n');
            out.push_str(indent);
            out.push_str("  ");
            column = indent.len() + 2;
        } else if i > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += word.len();
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_broken_and_commands_are_not() {
        let verdict = Verdict {
            node: "n1".into(),
            pod: None,
            time: String::new(),
            health: Health::Sick,
            sentences: vec!["word ".repeat(40).trim().into()],
            next: "x".repeat(150),
            findings: Vec::new(),
            unknown: vec!["\u{1b}[2J".into()],
        };
        let text = text(&verdict);
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("node n1: sick"));
        assert!(lines.next().unwrap().len() <= WIDTH);
        assert!(lines.next().unwrap().starts_with("    word"));
        assert!(text.contains("\\u{1b}[2J"), "{text}");
        assert!(text.ends_with(&format!("next: {}\n", "x".repeat(150))));
    }
}
