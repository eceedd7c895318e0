//! Reads the command line, and says what is wrong with it in one line.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cli::Cli;
use crate::output::printable;

/// The command line; or, where it asked for help or was wrong, what to exit with after this printed
/// the help or the error.
pub fn parse() -> Result<Cli, ExitCode> {
    Cli::read(std::env::args_os()).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match error.print() {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
            _ => ExitCode::SUCCESS,
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Help on a closed stderr has nowhere else to go.
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            let line = one_line(&error, |name| std::env::var(name).ok());
            // Not `eprintln!`: it panics where stderr takes nothing.
            let _ = writeln!(io::stderr(), "tracer: {line}");
            ExitCode::from(2)
        }
    })
}

/// clap's message without its layout: what is wrong, the tips, where to read on. clap blames the
/// flag also when the value came from the environment: say which variable it was.
fn one_line(error: &clap::Error, env: impl Fn(&str) -> Option<String>) -> String {
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n");
    let first = paragraphs.next().unwrap_or_default();
    let mut line = join(first.strip_prefix("error: ").unwrap_or(first));
    if let Some(variable) = variable(error, env) {
        line = format!("{line} (from {variable})");
    }
    for paragraph in paragraphs {
        let paragraph = join(paragraph);
        if let Some(tip) = paragraph.strip_prefix("tip: ") {
            line = format!("{line}; {tip}");
        }
    }
    printable(&format!("{line}; see --help")).into_owned()
}

fn join(paragraph: &str) -> String {
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The variable that holds the value complained of, if one does.
fn variable(error: &clap::Error, env: impl Fn(&str) -> Option<String>) -> Option<String> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(s)) => Some(s.as_str()),
        _ => None,
    };
    let flag = context(ContextKind::InvalidArg)?.strip_prefix("--")?;
    let flag = flag.split([' ', '=']).next()?;
    let name = format!("TRACER_{}", flag.to_uppercase().replace('-', "_"));
    let value = context(ContextKind::InvalidValue)?;
    env(&name)?.split(',').any(|v| v == value).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(args: &[&str]) -> clap::Error {
        Cli::read(["tracer"].iter().chain(args)).unwrap_err()
    }

    fn line(args: &[&str]) -> String {
        let error = error(args);
        assert_eq!(error.exit_code(), 2);
        let line = one_line(&error, |_| None);
        assert!(!line.contains('\n'), "{line}");
        line
    }

    #[test]
    fn errors_are_one_line_and_name_the_flag() {
        assert_eq!(
            line(&["agent", "--lisen", "x"]),
            "unexpected argument '--lisen' found; a similar argument exists: '--listen'; see --help"
        );
        assert_eq!(
            line(&["agent", "--api", "here"]),
            "invalid value 'here' for '--api <ADDR>': expected unix:PATH, ADDR:PORT or none; \
             see --help"
        );
        assert!(line(&["top", "--sort", "size"]).contains("overflows/s"));
        assert!(line(&["events", "--output", "xml"]).contains("[possible values: text, json]"));
        let evil = line(&["events", "--kind", "a\u{1b}[31mb\nc\u{9b}d"]);
        assert!(evil.chars().all(|c| c == ' ' || c.is_ascii_graphic()));
        assert!(line(&["completions"]).contains("<SHELL>"));
        assert!(line(&["when"]).contains("unrecognized subcommand 'when'"));
        assert!(line(&["why", "cart"]).contains("expected NS/NAME"));
    }

    #[test]
    fn a_value_from_the_environment_is_blamed_on_its_variable() {
        let error = error(&["agent", "--dns-timeout", "5"]);
        let env = |name: &str| (name == "TRACER_DNS_TIMEOUT").then(|| "5".to_owned());
        assert!(one_line(&error, env).contains("(from TRACER_DNS_TIMEOUT)"));
        let other = |_: &str| Some("6".to_owned());
        assert!(!one_line(&error, other).contains("from"));
    }
}
