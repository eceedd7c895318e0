//! What comes from the node: its files, its state folder, those who scrape it.

use std::{path::Path, sync::LazyLock, time::Duration};

use super::assert_plain;
use crate::{
    cli::{AgentArgs, Cli, Command, TopArgs},
    config::{Config, File, TopConfig},
    engine::memory::{Memory, Written},
    export::{
        metrics,
        negotiate::{Format, wants_gzip},
    },
};

/// The file of `--config`, and what the commands make of it.
pub(super) fn config(bytes: &[u8]) -> bool {
    static AGENT: LazyLock<AgentArgs> = LazyLock::new(|| match command("agent") {
        Command::Agent(args) => *args,
        _ => unreachable!("it is the agent's"),
    });
    static TOP: LazyLock<TopArgs> = LazyLock::new(|| match command("top") {
        Command::Top(args) => *args,
        _ => unreachable!("it is top's"),
    });

    let text = String::from_utf8_lossy(bytes);
    let file = match File::parse(&text, Path::new("tracer.toml")) {
        Ok(file) => file,
        Err(error) => {
            // One line, on the terminal of who starts it.
            let error = error.to_string();
            assert_plain(&error);
            assert!(!error.contains('\n'), "{error:?}");
            return false;
        }
    };
    if let Ok(config) = Config::agent(&AGENT, &file) {
        assert!(!config.dns_ports.is_empty() && !config.dns_ports.contains(&0));
        assert!(config.window >= Duration::from_secs(1) && config.max_pods > 0);
        assert!(config.dns_timeout > Duration::ZERO && !config.node.is_empty());
    }
    if let Ok(config) = TopConfig::new(&TOP, &file) {
        assert!(config.interval > Duration::ZERO);
    }
    true
}

fn command(name: &str) -> Command {
    let cli = Cli::read(["tracer", name]);
    cli.expect("it needs no flag").command
}

/// The file of `--pods file:PATH`.
pub(super) fn pod_file(bytes: &[u8]) -> bool {
    crate::pods::file::fuzz(&String::from_utf8_lossy(bytes))
}

/// What the agent before has written: what can be read can be written, and read again.
pub(super) fn memory(bytes: &[u8]) -> bool {
    let Ok(memory) = Memory::of(bytes) else {
        return false;
    };
    let Memory {
        since,
        epoch,
        highest,
        aggregate,
        tally,
        gone,
    } = memory;
    let aggregate = aggregate.restored(Duration::from_mins(1), 1_000);
    let written = Written {
        since,
        epoch,
        highest,
        aggregate: &aggregate,
        tally: &tally,
        gone: &gone,
    };
    // A time before 1970 is no time to serde.
    let Ok(bytes) = written.to_bytes() else {
        return false;
    };
    let again = Memory::of(&bytes).map(|memory| (memory.since, memory.highest));
    assert_eq!(again.expect("it was read before"), (since, highest));
    true
}

/// `Accept` and `Accept-Encoding`.
pub(super) fn accept(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let is_openmetrics = Format::wanted(&text) == Format::OpenMetrics;
    // Who gets something else than the usual has asked for it.
    let lower = text.to_ascii_lowercase();
    assert!(!is_openmetrics || lower.contains("application/openmetrics-text"));
    let gzip = wants_gzip(&text);
    assert!(!gzip || lower.contains("gzip"));
    is_openmetrics || gzip
}

/// Names in labels and help come out of both formats as they went in.
pub(super) fn exposition(bytes: &[u8]) -> bool {
    let Some((number, text)) = bytes.split_first_chunk() else {
        return false;
    };
    let number = u64::from_ne_bytes(*number);
    let text = String::from_utf8_lossy(text);
    let mut parts = text.split('\0');
    let mut part = || parts.next().unwrap_or_default();
    let values = [part(), part(), part()];
    metrics::fuzz::round_trip(&values, part(), number, f64::from_bits(number));
    true
}
