//! The first lines: is this node sick, what of it, since when.

use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::theme::{Theme, Tone};
use crate::export::snapshot::{History, Snapshot, Table};
use crate::output::printable;
use crate::top::live::state::{State, View};
use crate::top::text::percent;
use crate::why::evidence::Failure;
use crate::why::words::{count, later, moment, span};
use crate::why::{self, Health};

/// Signals, as the snapshot and as people call them.
const SIGNALS: [(&str, &str); 3] = [
    ("dns", "lookups"),
    ("neighbour", "neighbours"),
    ("connect", "connects"),
];

/// Below so many lines of the screen, each of the head's has to earn its place.
const LOW: u16 = 16;

/// All lines of the head: as many as leave a third of the screen to what is below. Who is sick and what of
/// tracer is in trouble stay; of the others the least important go.
pub(super) fn lines<'a>(state: &State, theme: Theme, area: Rect) -> Vec<Line<'a>> {
    let width = usize::from(area.width);
    let Some(shown) = &state.shown else {
        let what = match &state.silent {
            Some((why, _)) => why.clone(),
            None => "asking for the first figures".into(),
        };
        return vec![Line::raw(format!(" tracer top: {}", printable(&what)))];
    };
    let snapshot = &shown.snapshot;
    let mut lines = vec![title(state, snapshot, theme)];
    if let Some((why, _)) = &state.silent {
        // The one thing that is not old.
        let fresh = Theme {
            old: false,
            ..theme
        };
        lines.push(Line::styled(
            format!(" {}", printable(why)),
            fresh.style(Tone::Warn),
        ));
    }
    let most = match area.height {
        ..LOW => 1,
        LOW..30 => 3,
        _ => 4,
    };
    lines.extend(verdict(state, theme, width, most));
    let below = 1 + usize::from(area.height / 3).max(3);
    let room = usize::from(area.height).saturating_sub(below + lines.len());
    let trouble = fitted(trouble(state, snapshot), room, theme);
    // Each with its place on the screen, the most important first: the fullest table, the shares, the
    // other tables, who traces.
    let mut rest: Vec<(usize, Line)> = Vec::new();
    let mut tables: Vec<(usize, &Table)> = snapshot.tables.iter().enumerate().collect();
    tables.sort_by(|(_, a), (_, b)| filled(b).total_cmp(&filled(a)));
    for (place, table) in tables {
        rest.push((place, neighbours(table, &snapshot.history, theme, width)));
    }
    let place = rest.len();
    rest.insert(place.min(1), (place, ratios(snapshot, theme, width)));
    // Who looks closer has seen who traces; what is wrong with it stays.
    if area.height >= 30 || (area.height >= LOW && state.view == View::Pods) {
        rest.push((place + 1, tracing(snapshot, theme)));
    }
    rest.truncate(room.saturating_sub(trouble.len()));
    rest.sort_by_key(|(place, _)| *place);
    lines.extend(rest.into_iter().map(|(_, line)| line));
    lines.extend(trouble);
    lines
}

/// So many lines of trouble, the last one with the number of those that find no room.
fn fitted<'a>(mut trouble: Vec<String>, room: usize, theme: Theme) -> Vec<Line<'a>> {
    if trouble.len() > room {
        let kept = room.saturating_sub(1);
        let more = format!("{} more on a taller screen", trouble.len() - kept);
        trouble.truncate(kept);
        trouble.push(more);
    }
    let line = |text: String| {
        Line::styled(
            format!(" {} {}", theme.sign("▲", "!"), printable(&text)),
            theme.style(Tone::Warn),
        )
    };
    trouble.into_iter().map(line).collect()
}

fn title<'a>(state: &State, snapshot: &Snapshot, theme: Theme) -> Line<'a> {
    let fresh = Theme {
        old: false,
        ..theme
    };
    let badge = match (&state.silent, state.frozen) {
        (Some((_, since)), _) => {
            let text = format!(" NO ANSWER {} ", span(since.as_secs_f64()));
            Span::styled(text, fresh.badge(Tone::Bad))
        }
        (None, true) => Span::styled(" FROZEN ", fresh.badge(Tone::Warn)),
        (None, false) => Span::styled("live", theme.style(Tone::Good)),
    };
    let counting = later(&snapshot.since, &snapshot.time).map_or_else(String::new, |age| {
        format!(
            "  counting since {} ({})",
            moment(&snapshot.since, &snapshot.time),
            span(age.as_secs_f64())
        )
    });
    let by = if state.in_process {
        "  tracing in-process"
    } else {
        ""
    };
    Line::from(vec![
        Span::styled(" tracer top ", theme.style(Tone::Title)),
        Span::styled(
            printable(&snapshot.node).into_owned(),
            theme
                .style(Tone::Plain)
                .add_modifier(ratatui::style::Modifier::BOLD),
        ),
        Span::raw("  "),
        badge,
        Span::styled(
            format!("  {}{counting}{by}", moment(&snapshot.time, &snapshot.time)),
            theme.style(Tone::Faint),
        ),
    ])
}

/// The verdict of `tracer why` on the node, or on the pod that is looked at, in at most so many
/// lines.
fn verdict<'a>(state: &State, theme: Theme, width: usize, most: usize) -> Vec<Line<'a>> {
    let Some(shown) = &state.shown else {
        return Vec::new();
    };
    let of_pod = state.detail().map(|pod| {
        let failures = state.log.of((&pod.namespace, &pod.pod));
        let oldest_first: Vec<Failure> = failures.into_iter().rev().cloned().collect();
        why::judge(&shown.snapshot, &oldest_first, Some(pod))
    });
    let verdict = of_pod.as_ref().unwrap_or(&shown.verdict);
    let (word, tone) = match verdict.health {
        Health::Fine => ("FINE", Tone::Good),
        Health::FailsElsewhere => ("FAILS", Tone::Warn),
        Health::Warning => ("SOON", Tone::Warn),
        Health::Sick => ("SICK", Tone::Bad),
    };
    // Nobody knows what it is by now.
    let word = if theme.old {
        format!(" WAS {word} ")
    } else {
        format!(" {word} ")
    };
    let text = verdict.sentences.join(" ");
    let indent = word.len() + 2;
    let lines = wrap(&text, width.saturating_sub(indent + 1), most, theme);
    lines
        .into_iter()
        .enumerate()
        .map(|(i, line)| {
            let lead = if i == 0 {
                vec![
                    Span::raw(" "),
                    Span::styled(word.clone(), theme.badge(tone)),
                ]
            } else {
                vec![Span::raw(" ".repeat(indent - 1))]
            };
            let text = Span::styled(format!(" {line}"), theme.style(Tone::Plain));
            lead.into_iter().chain([text]).collect::<Line>()
        })
        .collect()
}

/// By words, in at most so many lines; dots where there is more.
pub(super) fn wrap(text: &str, width: usize, most: usize, theme: Theme) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.chars().take(width).collect()),
        }
    }
    if lines.len() > most {
        lines.truncate(most);
        if let Some(last) = lines.last_mut() {
            let kept: String = last.chars().take(width.saturating_sub(2)).collect();
            *last = format!("{kept} {}", theme.sign("…", "~"));
        }
    }
    lines
}

/// Entries ÷ limit.
fn filled(table: &Table) -> f64 {
    share_of_limit(table, table.entries.unwrap_or(0))
}

fn share_of_limit(table: &Table, n: u64) -> f64 {
    let limit = table.limits[2];
    if limit > 0 {
        n as f64 / limit as f64
    } else {
        0.0
    }
}

fn neighbours<'a>(table: &Table, history: &History, theme: Theme, width: usize) -> Line<'a> {
    let [low, middle, limit] = table.limits;
    let share_of = |n: u64| share_of_limit(table, n);
    let filled = filled(table);
    let tone = match &*table.pressure {
        "critical" => Tone::Bad,
        "rising" => Tone::Warn,
        _ => Tone::Good,
    };
    let entries = table.entries.map_or_else(|| "?".into(), count);
    let figures = format!(
        " {:>13} {:>4.0}%",
        format!("{entries}/{}", count(limit)),
        100.0 * filled
    );
    let until = match table.time_until_full_seconds {
        _ if filled >= 0.995 => " FULL".to_owned(),
        Some(left) => format!(" full in {}", span(left)),
        None if tone != Tone::Good => format!(" {}", table.pressure),
        None => String::new(),
    };
    // Label, figures and words; half of what is left for the bar, half for the trend.
    let left = width.saturating_sub(7 + figures.len() + 18);
    let bar_width = (left * 3 / 5).min(80);
    let spark_width = left.saturating_sub(bar_width + 1).min(60);
    let mut spans = vec![Span::styled(
        format!(" {:<5}", table.family.replace("ipv", "IPv")),
        theme.style(Tone::Title),
    )];
    spans.extend(theme.bar(bar_width, filled, &[share_of(low), share_of(middle)], tone));
    spans.push(Span::styled(figures, theme.style(tone)));
    spans.push(Span::raw(" "));
    let past: Vec<f64> = history
        .entries
        .get(&table.family)
        .map(|entries| entries.iter().map(|n| *n as f64).collect())
        .unwrap_or_default();
    spans.push(Span::styled(
        theme.spark(&past, spark_width, limit as f64),
        theme.style(Tone::Good),
    ));
    spans.push(Span::styled(until, theme.badge_if(tone, filled >= 0.995)));
    Line::from(spans)
}

impl Theme {
    fn badge_if(self, tone: Tone, badge: bool) -> ratatui::style::Style {
        if badge {
            self.badge(tone)
        } else {
            self.style(tone)
        }
    }
}

/// Failed shares over the window, each with its last minutes.
fn ratios<'a>(snapshot: &Snapshot, theme: Theme, width: usize) -> Line<'a> {
    let each = (width.saturating_sub(8)) / SIGNALS.len();
    let mut spans = vec![Span::styled(" failed", theme.style(Tone::Title))];
    for (signal, label) in SIGNALS {
        let ratio = snapshot.total.failure_ratio.get(signal).copied();
        let tone = match ratio {
            None => Tone::Faint,
            Some(r) if r <= 0.0 => Tone::Good,
            Some(r) if r < 0.01 => Tone::Warn,
            Some(_) => Tone::Bad,
        };
        let text = match ratio {
            None => format!(" {label} -"),
            Some(_) => format!(" {label} {}%", percent(ratio)),
        };
        let empty = Vec::new();
        let of = |map: &std::collections::BTreeMap<String, Vec<u64>>| {
            map.get(signal).unwrap_or(&empty).clone()
        };
        let (failed, all) = (of(&snapshot.history.failed), of(&snapshot.history.attempts));
        let past: Vec<f64> = failed
            .iter()
            .zip(&all)
            .map(|(failed, all)| {
                if *all > 0 {
                    *failed as f64 / *all as f64
                } else {
                    0.0
                }
            })
            .collect();
        let room = each.saturating_sub(text.len() + 2).min(60);
        let used = text.len();
        spans.push(Span::styled(text, theme.style(tone)));
        if ratio.is_some() && !past.is_empty() {
            spans.push(Span::raw(" "));
            spans.push(Span::styled(
                theme.spark(&past, room, 0.0),
                theme.style(tone),
            ));
        } else {
            spans.push(Span::raw(" ".repeat(each.saturating_sub(used + 1).min(61))));
        }
    }
    Line::from(spans)
}

/// What stands between the figures and the truth: one line each, and none where all is well.
fn trouble(state: &State, snapshot: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    for hook in snapshot.hooks.iter().filter(|h| h.state != "attached") {
        let colon = if hook.reason.is_empty() { "" } else { ": " };
        lines.push(format!(
            "hook {} {}{colon}{}",
            hook.name, hook.state, hook.reason
        ));
    }
    for source in &snapshot.sources {
        if !source.reason.is_empty() && !source.idle {
            lines.push(format!(
                "pod source {} does not answer: {}",
                source.name, source.reason
            ));
        }
    }
    let lost: Vec<String> = snapshot
        .hooks
        .iter()
        .filter(|h| h.lost > 0)
        .map(|h| format!("{} {}", h.name, count(h.lost)))
        .collect();
    if !lost.is_empty() {
        lines.push(format!(
            "event details lost in a full ring: {} (the counts are complete)",
            lost.join(", ")
        ));
    }
    if state.log.missed > 0 {
        lines.push(format!(
            "{} events came too fast to be shown here",
            count(state.log.missed)
        ));
    }
    let pending: u64 = snapshot.unattributed_pending.values().sum();
    if pending > 0 {
        lines.push(format!("{} waiting for a pod's name", count(pending)));
    }
    lines
}

/// Who traces, and over what the shares are.
fn tracing<'a>(snapshot: &Snapshot, theme: Theme) -> Line<'a> {
    let healthy: Vec<&str> = snapshot
        .sources
        .iter()
        .filter(|s| s.reason.is_empty() && s.pods > 0)
        .map(|s| s.name.as_str())
        .collect();
    let hooks: Vec<&str> = snapshot
        .hooks
        .iter()
        .filter(|h| h.state == "attached")
        .map(|h| h.name.as_str())
        .collect();
    let names = if healthy.is_empty() {
        "nobody".into()
    } else {
        healthy.join(", ")
    };
    Line::from(vec![
        Span::styled(" tracer", theme.style(Tone::Title)),
        Span::styled(
            format!(
                " hooks {}; names from {names}; shares over {:.0} s",
                hooks.join(", "),
                snapshot.window_seconds
            ),
            theme.style(Tone::Faint),
        ),
    ])
}
