//! What `events`, `top` and `why` read of an agent, which may be anybody who listens there.

use serde_json::Value;

use super::assert_plain;
use crate::{client::LineSplitter, events_cmd, why::evidence::Failure};

/// A stream of events: the first byte says how long its chunks are.
pub(super) fn events(bytes: &[u8]) -> bool {
    let Some((size, bytes)) = bytes.split_first() else {
        return false;
    };
    let mut understood = false;
    for line in lines(bytes, usize::from(*size).max(1)) {
        if let Ok(event) = serde_json::from_str(&line) {
            let text = events_cmd::line(&event);
            assert_plain(&text);
            assert!(!text.contains('\n'), "{text:?}");
        }
        if let Some(failure) = Failure::parse(&line) {
            assert_plain(&failure.sentence);
            understood = true;
        }
    }
    understood
}

/// Two snapshots, the older one first, then events, a line each.
pub(super) fn snapshot(bytes: &[u8]) -> bool {
    let mut lines = lines(bytes, 4096).into_iter();
    let mut next = || {
        let value: Value = serde_json::from_str(&lines.next()?).ok()?;
        if !counts(&value) {
            return None;
        }
        serde_json::from_value(value).ok()
    };
    let (Some(before), Some(after)) = (next(), next()) else {
        return false;
    };
    let failures: Vec<Failure> = lines.filter_map(|line| Failure::parse(&line)).collect();
    crate::top::fuzz::agent(&before, &after, &failures);
    true
}

/// Are its whole numbers such as may be counts? The sums of larger ones overflow, which is a lie more, and no harm:
/// only the build that is fuzzed checks for it.
fn counts(value: &Value) -> bool {
    const MOST: u64 = 1 << 53;
    match value {
        Value::Number(number) => number.as_u64().is_none_or(|n| n <= MOST),
        Value::Array(values) => values.iter().all(counts),
        Value::Object(fields) => fields.values().all(counts),
        _ => true,
    }
}

/// Of a stream in chunks; the same as if it came in one.
fn lines(bytes: &[u8], size: usize) -> Vec<String> {
    let mut splitter = LineSplitter::default();
    let mut lines = Vec::new();
    for chunk in bytes.chunks(size) {
        splitter.push(chunk);
        lines.extend(std::iter::from_fn(|| splitter.next()));
    }
    let whole = bytes.iter().rposition(|byte| *byte == b'\n');
    let whole = String::from_utf8_lossy(&bytes[..whole.map_or(0, |end| end + 1)]).into_owned();
    let count = whole.matches('\n').count();
    assert_eq!(lines.len(), count);
    lines
}
