//! The table of pods, as many columns as there is room for.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Modifier;
use ratatui::text::{Line, Span};

use super::theme::{Theme, Tone};
use super::{clock, put, rule, shorten};
use crate::output::{printable, seconds};
use crate::top::columns::Column;
use crate::top::live::state::{Shown, State};
use crate::top::table::Row;
use crate::top::text::{figure, percent};
use crate::why::words::{count, later};

/// A column: what it shows, its head, its width, and from which width of the screen on it shows.
struct Spec {
    column: Column,
    title: &'static str,
    width: usize,
    from: u16,
}

const fn spec(column: Column, title: &'static str, width: usize, from: u16) -> Spec {
    Spec {
        column,
        title,
        width,
        from,
    }
}

/// Beside the pod's name, which takes what is left: 16 cells at least, for a row without a name tells
/// nobody anything. What matters most shows on any screen too.
const COLUMNS: [Spec; 14] = [
    spec(Column::Failed, "FAIL%", 5, 0),
    spec(Column::Lookups, "LOOK/s", 6, 0),
    spec(Column::Timeouts, "TMO/s", 6, 60),
    spec(Column::P50, "P50", 6, 100),
    spec(Column::P99, "P99", 6, 74),
    spec(Column::Cause, "MAIN CAUSE", 12, 52),
    spec(Column::Entries, "NEIGH", 6, 66),
    spec(Column::Overflows, "OVFL/s", 6, 0),
    spec(Column::Drops, "DROP/s", 6, 110),
    spec(Column::ConnectFailed, "CONN%", 5, 120),
    spec(Column::Retransmits, "RETR/s", 6, 130),
    spec(Column::FailuresTotal, "FAILED", 8, 140),
    spec(Column::OverflowsTotal, "OVERFLOWS", 9, 150),
    spec(Column::Since, "SINCE", 8, 92),
];

/// From here on each pod has its last minute of failures.
const ROOM_FOR_TREND: u16 = 165;
/// A pod that has failed for less long stands out.
const NEW: u64 = 60;
/// Width of the mark before the name.
const MARK: usize = 2;

/// Draws title, head and rows; the cursor is always on the screen.
pub(super) fn draw(frame: &mut Frame, area: Rect, state: &State, theme: Theme) {
    let Some(shown) = &state.shown else {
        return;
    };
    let rows = state.visible_rows();
    let trend = if area.width >= ROOM_FOR_TREND { 21 } else { 0 };
    let (columns, name) = columns(area.width, trend);
    let mut lines = vec![
        rule(title(state, shown, &rows, theme), area.width, theme),
        head(&columns, name, trend, state, theme),
    ];
    if rows.is_empty() {
        lines.push(Line::styled(nobody(state, shown), theme.style(Tone::Faint)));
    }
    let cursor = state.cursor(&rows);
    let height = usize::from(area.height).saturating_sub(lines.len());
    let first = cursor
        .saturating_sub(height / 2)
        .min(rows.len().saturating_sub(height));
    for (i, row) in rows.iter().enumerate().skip(first).take(height) {
        let mut line = line(row, &columns, name, trend, state, theme);
        if i == cursor {
            line.style = Theme::cursor(line.style);
            let used = line.width();
            let rest = usize::from(area.width).saturating_sub(used);
            line.push_span(Span::raw(" ".repeat(rest)));
        }
        lines.push(line);
    }
    put(frame, area, lines);
}

/// The columns that have room, and what is left for the name.
fn columns(screen: u16, trend: usize) -> (Vec<&'static Spec>, usize) {
    let columns: Vec<&Spec> = COLUMNS.iter().filter(|c| c.from <= screen).collect();
    let taken: usize = columns.iter().map(|c| c.width + 1).sum();
    let left = usize::from(screen).saturating_sub(MARK + taken + trend);
    // Names of pods have 63 letters at most, most of them far fewer.
    (columns, left.min(72))
}

fn nobody(state: &State, shown: &Shown) -> &'static str {
    if shown.rows.is_empty() {
        "  no pod has had traffic yet"
    } else if state.pod_filter.is_empty() {
        "  every pod is healthy (h shows them)"
    } else {
        "  no pod matches the filter (/ then Esc clears it)"
    }
}

fn title<'a>(state: &State, shown: &Shown, rows: &[&Row], theme: Theme) -> Vec<Span<'a>> {
    let all = shown.rows.len();
    let failing = shown.rows.iter().filter(|r| r.is_failing()).count();
    let tone = if failing > 0 { Tone::Bad } else { Tone::Good };
    let pods = if rows.len() == all {
        format!("{} pods", count(all as u64))
    } else {
        format!("{} of {} pods", count(rows.len() as u64), count(all as u64))
    };
    let reverse = if state.reverse { " reversed" } else { "" };
    let mut spans = vec![
        Span::styled(pods, theme.style(Tone::Title)),
        Span::styled(
            format!(", {} failing", count(failing as u64)),
            theme.style(tone),
        ),
        Span::raw(format!(", {} lookups/s", figure(shown.total.lookups))),
        Span::raw(match state.sort {
            Column::Worst => format!(", worst first{reverse}"),
            column => format!(", by {}{reverse}", column.name()),
        }),
    ];
    if !state.pod_filter.is_empty() {
        let filter = format!(", filter {:?}", state.pod_filter);
        spans.push(Span::styled(filter, theme.style(Tone::Warn)));
    }
    if state.hide_healthy {
        spans.push(Span::styled(
            ", healthy ones hidden",
            theme.style(Tone::Warn),
        ));
    }
    spans
}

fn head<'a>(columns: &[&Spec], name: usize, trend: usize, state: &State, theme: Theme) -> Line<'a> {
    let style = |sorted: bool| {
        let style = theme.style(Tone::Title);
        if sorted {
            style.add_modifier(Modifier::UNDERLINED | Modifier::REVERSED)
        } else {
            style
        }
    };
    let by_name = matches!(state.sort, Column::Pod | Column::Namespace);
    let mut spans = vec![
        Span::raw(" ".repeat(MARK)),
        Span::styled(format!("{:<name$}", "POD"), style(by_name)),
    ];
    for column in columns {
        spans.push(Span::raw(" "));
        let text = aligned(column.title, column);
        spans.push(Span::styled(text, style(column.column == state.sort)));
    }
    if trend > 0 {
        spans.push(Span::styled("  LAST MINUTE", style(false)));
    }
    Line::from(spans)
}

fn line<'a>(
    row: &Row,
    columns: &[&Spec],
    name: usize,
    trend: usize,
    state: &State,
    theme: Theme,
) -> Line<'a> {
    let failing = row.is_failing();
    let tone = if failing { Tone::Bad } else { Tone::Plain };
    let (mark, mark_style) = if is_new(row, state) {
        (theme.sign("★ ", "* "), theme.badge(Tone::Bad))
    } else if failing {
        (theme.sign("● ", "! "), theme.style(Tone::Bad))
    } else {
        ("  ", theme.style(Tone::Plain))
    };
    let full = printable(&format!("{}/{}", row.namespace, row.pod)).into_owned();
    let mut spans = vec![
        Span::styled(mark, mark_style),
        Span::styled(
            format!("{:<name$}", shorten(&full, name, theme)),
            theme.style(tone),
        ),
    ];
    for column in columns {
        let (text, tone) = cell(row, column.column);
        spans.push(Span::raw(" "));
        let text = shorten(&text, column.width, theme);
        spans.push(Span::styled(aligned(&text, column), theme.style(tone)));
    }
    if trend > 0 {
        let past: Vec<f64> = state
            .trends
            .of(row.key())
            .map(|t| t.failures().iter().map(|n| *n as f64).collect())
            .unwrap_or_default();
        spans.push(Span::raw(" "));
        let spark = theme.spark(&thirds(&past), trend - 1, 0.0);
        spans.push(Span::styled(spark, theme.style(tone)));
    }
    Line::from(spans)
}

/// Three ticks in one cell: a minute at the usual interval.
fn thirds(values: &[f64]) -> Vec<f64> {
    values.rchunks(3).rev().map(|c| c.iter().sum()).collect()
}

fn is_new(row: &Row, state: &State) -> bool {
    let Some(shown) = &state.shown else {
        return false;
    };
    let age = row
        .since
        .as_ref()
        .and_then(|since| later(since, &shown.snapshot.time));
    age.is_some_and(|age| age.as_secs() < NEW)
}

fn aligned(text: &str, column: &Spec) -> String {
    let width = column.width;
    if column.column == Column::Cause {
        format!("{text:<width$}")
    } else {
        format!("{text:>width$}")
    }
}

/// The text of a figure, and how bad it is.
fn cell(row: &Row, column: Column) -> (String, Tone) {
    let time = |t: Option<f64>| t.map_or_else(|| "-".into(), seconds);
    let bad = |is_bad: bool| if is_bad { Tone::Bad } else { Tone::Plain };
    match column {
        Column::Failed => {
            let ratio = row.failed_ratio;
            (percent(ratio), bad(ratio.is_some_and(|r| r > 0.0)))
        }
        Column::Lookups => (figure(row.lookups), Tone::Plain),
        Column::Timeouts => (figure(row.timeouts), bad(row.timeouts > 0.0)),
        Column::P50 => (time(row.p50), Tone::Plain),
        Column::P99 => (time(row.p99), bad(row.p99.is_some_and(|p| p >= 1.0))),
        Column::Cause => match &row.cause {
            Some(cause) if row.is_failing() => (short_cause(cause), Tone::Bad),
            // What is over is told, but quietly.
            Some(cause) => (short_cause(cause), Tone::Faint),
            None => ("-".into(), Tone::Faint),
        },
        Column::Entries => (row.entries.to_string(), Tone::Plain),
        Column::Creates => (figure(row.creates), Tone::Plain),
        Column::Overflows => (figure(row.overflows), bad(row.overflows > 0.0)),
        Column::Drops => (figure(row.drops), bad(row.drops > 0.0)),
        Column::ConnectFailed => {
            let ratio = row.connect_failed_ratio;
            (percent(ratio), bad(ratio.is_some_and(|r| r > 0.0)))
        }
        Column::Retransmits => (figure(row.retransmits), Tone::Plain),
        Column::FailuresTotal => (row.failures_total.to_string(), Tone::Plain),
        Column::OverflowsTotal => (row.overflows_total.to_string(), Tone::Plain),
        Column::Since => (
            row.since.as_deref().map_or("-", clock).to_owned(),
            bad(row.since.is_some()),
        ),
        Column::Worst | Column::Namespace | Column::Pod => (String::new(), Tone::Plain),
    }
}

/// Causes in twelve letters.
pub(super) fn short_cause(cause: &str) -> String {
    match cause {
        "neighbour_table_full" => "table full".into(),
        "neighbour_unresolved" => "unresolved".into(),
        "neighbour_queue_full" => "queue full".into(),
        "socket_buffer_full" => "buffer full".into(),
        "port_unreachable" => "no listener".into(),
        other => printable(&other.replace('_', " ")).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_has_room_on_any_screen() {
        for screen in super::super::SMALLEST.0..300 {
            let trend = if screen >= ROOM_FOR_TREND { 21 } else { 0 };
            let (_, name) = columns(screen, trend);
            assert!(name >= 16, "{name} of {screen} cells");
        }
    }
}
