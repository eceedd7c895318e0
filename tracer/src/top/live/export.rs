//! What is seen, as a JSON file.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::state::{State, View};

/// Writes it into the folder, or into the temporary one where it may not; gives the path. Names
/// asked for are private: nobody else may read it.
pub(super) fn write(state: &State, folder: &Path) -> std::io::Result<PathBuf> {
    let value = seen(state);
    let name = format!(
        "{}-{}",
        value["node"].as_str().unwrap_or("node"),
        value["time"].as_str().unwrap_or("now")
    );
    save(&value, &name, folder)
}

/// Writes a value to a file that has `name` in its own.
pub(in crate::top) fn save(value: &Value, name: &str, folder: &Path) -> std::io::Result<PathBuf> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let name = format!("tracer-top-{}.json", plain(name));
    let text = format!("{value:#}\n");
    let try_in = |folder: &Path| {
        let path = folder.join(&name);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(text.as_bytes())?;
        Ok(path)
    };
    try_in(folder).or_else(|_: std::io::Error| try_in(&std::env::temp_dir()))
}

/// A part of a file's name.
fn plain(text: &str) -> String {
    let keep = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    text.chars()
        .map(|c| if keep(c) { c } else { '-' })
        .collect()
}

fn seen(state: &State) -> Value {
    let Some(shown) = &state.shown else {
        return json!({});
    };
    let rows: Vec<_> = state
        .visible_rows()
        .iter()
        .filter_map(|row| {
            let mut pods = shown.snapshot.pods.iter();
            let pod = pods.find(|p| (&*p.namespace, &*p.pod) == row.key())?;
            Some(json!({
                "lookups_per_second": row.lookups,
                "failures_per_second": row.failures,
                "timeouts_per_second": row.timeouts,
                "overflows_per_second": row.overflows,
                "drops_per_second": row.drops,
                "p50_seconds": row.p50,
                "p99_seconds": row.p99,
                "main_cause": row.cause,
                "failing_since": row.since,
                "figures": pod,
            }))
        })
        .collect();
    let events: Vec<_> = match &state.view {
        View::Detail { namespace, pod } => state.log.of((namespace, pod)),
        View::Pods | View::Events => state.visible_events(),
    };
    let events: Vec<_> = events
        .into_iter()
        .map(|e| {
            json!({"time": e.time, "kind": e.kind, "cause": e.cause, "what": e.sentence,
                "pod": {"namespace": e.namespace, "name": e.pod}})
        })
        .collect();
    let snapshot = &shown.snapshot;
    json!({
        "node": snapshot.node,
        "time": snapshot.time,
        "since": snapshot.since,
        "window_seconds": snapshot.window_seconds,
        "verdict": shown.verdict,
        "tables": snapshot.tables,
        "conntrack": snapshot.conntrack,
        "hooks": snapshot.hooks,
        "sources": snapshot.sources,
        "history": snapshot.history,
        "total": snapshot.total,
        "pods": rows,
        "events": events,
    })
}
