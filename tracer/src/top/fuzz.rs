//! [`crate::fuzz`]: what `top` and `why` show of figures that anybody may have sent.

use std::time::Duration;

use ratatui::buffer::Buffer;

pub(crate) use super::cluster::fuzz::prometheus;
use super::{columns::Column, one_table};
use crate::{
    export::snapshot::{Pod, Snapshot},
    why::{self, evidence::Failure},
};

const INTERVAL: Duration = Duration::from_secs(1);

/// Snapshots and events of an agent.
pub(crate) fn agent(before: &Snapshot, after: &Snapshot, failures: &[Failure]) {
    let table = one_table(before, after, INTERVAL, Column::default());
    assert_plain(&table);
    let pods = after.pods.iter().take(3).map(Some);
    for pod in std::iter::once(None::<&Pod>).chain(pods) {
        let verdict = why::judge(after, failures, pod);
        assert_plain(&why::text::text(&verdict));
        serde_json::to_string(&verdict).expect("a verdict is JSON");
    }
    super::live::fuzz::agent(before, after, failures);
}

pub(super) fn assert_plain(text: &str) {
    let is_plain = |c: char| c == '\n' || c == ' ' || c.is_ascii_graphic();
    assert!(text.chars().all(is_plain), "{text:?}");
}

/// A screen holds plain text, and what lines and bars are drawn with.
pub(super) fn assert_drawn(buffer: &Buffer) {
    for cell in buffer.content() {
        let symbol = cell.symbol();
        let is_drawn = |c: char| {
            c == ' '
                || c.is_ascii_graphic()
                || ('\u{2190}'..='\u{28ff}').contains(&c)
                || "·…—".contains(c)
        };
        assert!(symbol.chars().all(is_drawn), "{symbol:?}");
    }
}
