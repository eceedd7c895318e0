//! One pod: what became of its lookups, why, how long they took, whom and what it asked for, its
//! dead destinations and its last failures.

use std::collections::BTreeMap;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use tracer_common::dns::BUCKETS_NS;

use super::theme::{Theme, Tone};
use super::{events, pods, put, rule, shorten};
use crate::export::snapshot::Pod;
use crate::output::{printable, seconds};
use crate::top::live::state::{State, View};
use crate::why::evidence::{Failure, ranked};
use crate::why::words::{count, moment, share};

/// Lines of the lists beside each other.
const LISTED: usize = 4;

/// Draws it.
pub(super) fn draw(frame: &mut Frame, area: Rect, state: &State, theme: Theme) {
    let View::Detail {
        namespace,
        pod: name,
    } = &state.view
    else {
        return;
    };
    let full = printable(&format!("{namespace}/{name}")).into_owned();
    let title = vec![Span::styled(full.clone(), theme.style(Tone::Title))];
    let Some(pod) = state.detail() else {
        let lines = vec![
            rule(title, area.width, theme),
            Line::raw("  this pod has no figures any more: it is gone, or the agent began anew"),
        ];
        put(frame, area, lines);
        return;
    };
    let failures = state.log.of((namespace, name));
    let mut top = vec![rule(title, area.width, theme)];
    top.push(summary(pod, theme));

    let columns = columns(pod, state, &failures, theme, area);
    let tall = columns.iter().map(Vec::len).max().unwrap_or(0) as u16;
    let head_height = top.len() as u16;
    let [above, middle, below] = Layout::vertical([
        Constraint::Length(head_height),
        Constraint::Length(tall),
        Constraint::Min(2),
    ])
    .areas(area);
    put(frame, above, top);
    let parts: Vec<Constraint> = columns
        .iter()
        .map(|_| Constraint::Ratio(1, columns.len() as u32))
        .collect();
    let places = Layout::horizontal(parts).split(middle);
    for (place, lines) in places.iter().zip(columns) {
        put(frame, *place, lines);
    }
    last_failures(frame, below, state, &failures, theme);
}

fn summary<'a>(pod: &Pod, theme: Theme) -> Line<'a> {
    let neighbours: Vec<String> = pod
        .figures
        .neighbour
        .iter()
        .map(|(family, n)| {
            format!(
                "{} {} held, {} refused",
                family.replace("ipv", "IPv"),
                count(n.entries),
                count(n.table_full)
            )
        })
        .collect();
    let mut parts = vec![format!(" neighbours: {}", neighbours.join("; "))];
    let (lost, again) = (pod.figures.receive_drops, pod.figures.retransmits);
    if lost > 0 {
        parts.push(format!("{} datagrams lost in full buffers", count(lost)));
    }
    if pod.figures.resets + again > 0 {
        let resets = count(pod.figures.resets);
        parts.push(format!("TCP {} retransmits, {resets} resets", count(again)));
    }
    Line::styled(parts.join("; "), theme.style(Tone::Faint))
}

/// Two columns of figures, three on a wide screen.
fn columns<'a>(
    pod: &Pod,
    state: &State,
    failures: &[&Failure],
    theme: Theme,
    area: Rect,
) -> Vec<Vec<Line<'a>>> {
    let wide = area.width >= 120;
    let width = usize::from(area.width) / if wide { 3 } else { 2 };
    let roomy = area.height >= 26;
    let dns = &pod.figures.dns;
    let mut left = bars(
        "lookups, by outcome",
        &dns.outcomes,
        width,
        theme,
        |o| match o {
            "noerror" | "nodata" | "nxdomain" => Tone::Good,
            _ => Tone::Bad,
        },
    );
    left.extend(bars(
        "failures, by cause",
        &dns.causes,
        width,
        theme,
        |_| Tone::Bad,
    ));
    if pod.figures.connects.values().sum::<u64>() > 0 {
        let connects = &pod.figures.connects;
        left.extend(bars("TCP connects", connects, width, theme, |result| {
            if result == "established" {
                Tone::Good
            } else {
                Tone::Bad
            }
        }));
    }
    let latency = latency(pod, state, width, theme);
    let listed = if roomy { 2 * LISTED } else { LISTED };
    let mut lists = Vec::new();
    let part = |title, of: for<'f> fn(&'f Failure) -> Option<&'f str>| {
        let lookups: Vec<&Failure> = failures
            .iter()
            .copied()
            .filter(|f| f.kind == "dns_failure")
            .collect();
        list(title, &ranked(&lookups, of), width, listed, theme)
    };
    lists.extend(part("servers of failed lookups", |f| f.towards.as_deref()));
    lists.extend(part("names that fail most", |f| f.name.as_deref()));
    lists.extend(dead(pod, state, width, listed, theme));
    if wide {
        return vec![left, latency, lists];
    }
    // On a small screen the latency stands under the bars only where there is room for both.
    if roomy {
        left.extend(latency);
        vec![left, lists]
    } else if lists.is_empty() {
        vec![left, latency]
    } else {
        vec![left, lists]
    }
}

fn section<'a>(title: &str, theme: Theme) -> Line<'a> {
    Line::styled(format!(" {title}"), theme.style(Tone::Title))
}

/// A bar for each that is not 0, the largest first.
fn bars<'a>(
    title: &str,
    counts: &BTreeMap<String, u64>,
    width: usize,
    theme: Theme,
    tone: impl Fn(&str) -> Tone,
) -> Vec<Line<'a>> {
    let all: u64 = counts.values().sum();
    let mut lines = vec![section(title, theme)];
    if all == 0 {
        lines.push(Line::styled("  none", theme.style(Tone::Faint)));
        return lines;
    }
    let mut counts: Vec<(&String, u64)> = counts.iter().map(|(k, n)| (k, *n)).collect();
    counts.retain(|(_, n)| *n > 0);
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    for (name, n) in counts {
        let label = pods::short_cause(name);
        let figures = format!(
            " {:>7} {:>6}",
            count(n),
            share(n, all).replace(" %", "%").replace("less than ", "<")
        );
        let room = width.saturating_sub(14 + figures.len() + 1);
        let mut spans = vec![Span::raw(format!("  {:<12}", shorten(&label, 12, theme)))];
        spans.extend(theme.bar(room, n as f64 / all as f64, &[], tone(name)));
        spans.push(Span::raw(figures));
        lines.push(Line::from(spans));
    }
    lines
}

fn latency<'a>(pod: &Pod, state: &State, width: usize, theme: Theme) -> Vec<Line<'a>> {
    let key = (pod.namespace.as_str(), pod.pod.as_str());
    let recent = state
        .trends
        .of(key)
        .map(super::super::trends::Trend::buckets);
    let recent = recent.filter(|buckets| buckets.iter().sum::<u64>() > 0);
    let (buckets, of) = match recent {
        Some(buckets) => (buckets.to_vec(), "last minute"),
        None => (pod.figures.dns.buckets.clone(), "since counting began"),
    };
    let mut lines = vec![section(&format!("latency of answers, {of}"), theme)];
    let all: u64 = buckets.iter().sum();
    if all == 0 {
        lines.push(Line::styled("  no answers", theme.style(Tone::Faint)));
        return lines;
    }
    let used: Vec<usize> = (0..buckets.len()).filter(|i| buckets[*i] > 0).collect();
    let (first, last) = (used[0], used[used.len() - 1]);
    let highest = buckets.iter().max().copied().unwrap_or(1);
    for (i, n) in buckets.iter().enumerate().take(last + 1).skip(first) {
        let label = match BUCKETS_NS.get(i) {
            Some(ns) => format!("{} {}", theme.sign("≤", "<="), seconds(*ns as f64 / 1e9)),
            None => "> 5.0s".into(),
        };
        let figures = format!(" {:>8}", count(*n));
        let room = width.saturating_sub(13 + figures.len() + 1);
        let tone = if i >= 10 { Tone::Bad } else { Tone::Good };
        let mut spans = vec![Span::raw(format!("  {label:<11}"))];
        spans.extend(theme.bar(room, *n as f64 / highest as f64, &[], tone));
        spans.push(Span::raw(figures));
        lines.push(Line::from(spans));
    }
    lines
}

fn list<'a>(
    title: &str,
    ranked: &[(&str, usize)],
    width: usize,
    most: usize,
    theme: Theme,
) -> Vec<Line<'a>> {
    if ranked.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![section(title, theme)];
    for (value, n) in ranked.iter().take(most) {
        let room = width.saturating_sub(12);
        let value = shorten(&printable(value), room, theme);
        lines.push(Line::raw(format!("  {:>7}  {value}", count(*n as u64))));
    }
    if ranked.len() > most {
        let more = format!("           and {} more", ranked.len() - most);
        lines.push(Line::styled(more, theme.style(Tone::Faint)));
    }
    lines
}

fn dead<'a>(pod: &Pod, state: &State, width: usize, most: usize, theme: Theme) -> Vec<Line<'a>> {
    let dead = &pod.figures.dead_endpoints;
    if dead.is_empty() {
        return Vec::new();
    }
    let now = state
        .shown
        .as_ref()
        .map_or("", |s| s.snapshot.time.as_str());
    let mut lines = vec![section("destinations that answer nobody", theme)];
    for endpoint in dead.iter().take(most) {
        let was = match (&endpoint.last_owner, &endpoint.owner_gone_since) {
            (Some(owner), Some(since)) => format!(", was {owner} until {}", moment(since, now)),
            (Some(owner), None) => format!(", is {owner}"),
            _ => String::new(),
        };
        let text = printable(&format!("{}{was}", endpoint.destination)).into_owned();
        let text = shorten(&text, width.saturating_sub(12), theme);
        lines.push(Line::raw(format!(
            "  {:>7}  {text}",
            count(endpoint.attempts)
        )));
    }
    lines
}

fn last_failures(
    frame: &mut Frame,
    area: Rect,
    state: &State,
    failures: &[&Failure],
    theme: Theme,
) {
    let title = vec![
        Span::styled("last failures", theme.style(Tone::Title)),
        Span::raw(format!(", {} held", count(failures.len() as u64))),
    ];
    let mut lines = vec![rule(title, area.width, theme)];
    if failures.is_empty() {
        lines.push(Line::styled("  none", theme.style(Tone::Faint)));
    }
    let height = usize::from(area.height).saturating_sub(1);
    let first = state.scrolled.min(failures.len().saturating_sub(height));
    let shown = failures.iter().skip(first).take(height);
    lines.extend(shown.map(|event| events::line(event, area.width, false, theme)));
    put(frame, area, lines);
}
