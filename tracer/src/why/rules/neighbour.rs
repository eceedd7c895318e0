//! The neighbour tables: full, thrashing, filling, or full a while ago.

use std::cmp::Ordering;

use serde_json::json;

use super::{Finding, Weight, figures, ratio, since, window};
use crate::doctor::thresholds_for;
use crate::export::snapshot::Table;
use crate::why::evidence::Facts;
use crate::why::words::{count, counted, later, moment, name, share, span};

const FAMILIES: [(&str, &str); 2] = [("ipv4", "IPv4"), ("ipv6", "IPv6")];
/// What is over is news for so long.
const PAST_SECONDS: u64 = 3600;
/// Share of the new entries that must have been thrown out just before to call it thrashing.
const THRASHES: f64 = 0.05;
/// And their least number in the window.
const THRASHES_AT_LEAST: u64 = 20;

/// Below this share of the limit, and with more time left than this, there is no pressure.
const CALM: f64 = 0.6;
const SOON: f64 = 600.0;

/// Creations are refused for want of room.
pub(super) fn table_full(facts: &Facts) -> Vec<Finding> {
    let rule = |(family, label): (&str, &str)| -> Option<Finding> {
        let cause = format!("{family}_table_full");
        let refused = facts.active("neighbour", &cause);
        let lookups = facts.active("dns", "neighbour_table_full");
        // Lookups do not say of which family the table was that killed them.
        let node = Facts {
            pod: None,
            ..*facts
        };
        // Lookups end later than what killed them: the refusals may have left the window before.
        // An agent that was begun meanwhile knows no episode of them, but how many there were.
        let refusals = |family: &str| {
            let of_node = node.episode("neighbour", &format!("{family}_table_full"));
            let (recent, last) = of_node.map_or((0, ""), |e| (e.recent_failed, &e.last));
            let all = node.figures().neighbour.get(family);
            (recent, last, all.map_or(0, |figures| figures.table_full))
        };
        let other = FAMILIES.iter().find(|(f, _)| *f != family)?.0;
        let mainly = match refusals(family).cmp(&refusals(other)) {
            Ordering::Equal => family == FAMILIES[0].0,
            order => order.is_gt(),
        };
        let lookups = lookups.filter(|_| mainly);
        if refused.is_none() && lookups.is_none() {
            return None;
        }
        let table = facts.table(family);
        let began = since(facts, refused.or(lookups)?);
        let window = window(facts);
        let pods = facts.suffering("dns", "neighbour_table_full").len() as u64;
        let victims = match (facts.pod, pods) {
            (Some(pod), _) => format!(" of {}", name(pod)),
            (None, 0) => String::new(),
            (None, pods) => format!(" of {}", counted(pods, "pod", "pods")),
        };
        let what = match (lookups, refused) {
            (Some(dns), _) => format!(
                "{} of the lookups{victims} ({} of {} {window}) die here",
                share(dns.recent_failed, dns.recent_attempts),
                count(dns.recent_failed),
                count(dns.recent_attempts),
            ),
            (None, Some(refused)) => {
                let of = match facts.pod {
                    Some(pod) => format!(" of {}", name(pod)),
                    None => match facts.suffering("neighbour", &cause).len() as u64 {
                        0 => String::new(),
                        n => format!(" of {}", counted(n, "pod", "pods")),
                    },
                };
                format!(
                    "{} of the new entries{of} ({} of {} {window}) are refused",
                    share(refused.recent_failed, refused.recent_attempts),
                    count(refused.recent_failed),
                    count(refused.recent_attempts),
                )
            }
            (None, None) => return None,
        };
        let limit = table.map_or(0, |t| t.limits[2]);
        let holder = facts.top_holder(family);
        let held = holder.map_or_else(String::new, |(pod, held)| {
            let asked = facts.pod.is_some_and(|asked| name(asked) == name(pod));
            format!(
                "; {} holds {} of {} entries",
                if asked { "it".to_owned() } else { name(pod) },
                count(held),
                count(limit)
            )
        });
        let next = raise(family, table);
        let died = lookups.or(refused)?;
        Some(Finding {
            rule: "table-full",
            weight: Weight::Node,
            share: ratio(died.recent_failed, died.recent_attempts),
            sentence: format!(
                "{label} neighbour table full {began}: {what}{held}; raise gc_thresh3 or move pods"
            ),
            since: refused.or(lookups).map(|e| e.since.clone()),
            figures: figures([
                ("family", json!(family)),
                ("entries", json!(table.and_then(|t| t.entries))),
                ("limit", json!(limit)),
                ("refused", json!(refused.map(|e| e.recent_failed))),
                ("creations", json!(refused.map(|e| e.recent_attempts))),
                ("lookups_failed", json!(lookups.map(|e| e.recent_failed))),
                ("lookups", json!(lookups.map(|e| e.recent_attempts))),
                ("pods_with_failed_lookups", json!(pods)),
                ("top_holder", json!(holder.map(|(pod, _)| name(pod)))),
                ("top_holder_entries", json!(holder.map(|(_, n)| n))),
            ]),
            next,
            unknown: None,
        })
    };
    FAMILIES.into_iter().filter_map(rule).collect()
}

/// Entries are thrown out and asked for again at once: the next step is a full table.
pub(super) fn table_thrashes(facts: &Facts) -> Vec<Finding> {
    let rule = |(family, label): (&str, &str)| -> Option<Finding> {
        let again = facts.active("neighbour", &format!("{family}_recreated"))?;
        let part = ratio(again.recent_failed, again.recent_attempts);
        if again.recent_failed < THRASHES_AT_LEAST || part < THRASHES {
            return None;
        }
        let table = facts.table(family);
        Some(Finding {
            rule: "table-thrashes",
            weight: Weight::Node,
            share: part / 10.0, // costs time, and no packet yet
            sentence: format!(
                "{label} neighbour table thrashes {}: {} of {} new entries {} had been thrown out \
                 less than 10 s before, for the node talks to more neighbours than the table keeps",
                since(facts, again),
                count(again.recent_failed),
                count(again.recent_attempts),
                window(facts),
            ),
            since: Some(again.since.clone()),
            figures: figures([
                ("family", json!(family)),
                ("recreated", json!(again.recent_failed)),
                ("created", json!(again.recent_attempts)),
                ("limits", json!(table.map(|t| t.limits))),
            ]),
            next: raise(family, table),
            unknown: None,
        })
    };
    FAMILIES.into_iter().filter_map(rule).collect()
}

/// The pressure is up, and nothing is refused yet.
pub(super) fn table_fills(facts: &Facts) -> Vec<Finding> {
    let rule = |(family, label): (&str, &str)| -> Option<Finding> {
        let table = facts.table(family)?;
        let entries = table.entries?;
        let node = Facts {
            pod: None,
            ..*facts
        };
        let full = node.active("neighbour", &format!("{family}_table_full"));
        if full.is_some() || !matches!(&*table.pressure, "rising" | "critical") {
            return None;
        }
        let limit = table.limits[2];
        // The pressure falls only after 30 s of calm.
        let soon = table
            .time_until_full_seconds
            .is_some_and(|left| left < SOON);
        if ratio(entries, limit) < CALM && !soon {
            return None;
        }
        let until = table.time_until_full_seconds.map_or_else(
            || ", and does not grow at present".to_owned(),
            |left| format!(", and full in about {} at the present rate", span(left)),
        );
        let holder = facts.top_holder(family);
        let held = holder.map_or_else(String::new, |(pod, n)| {
            format!("; {} holds {}", name(pod), counted(n, "entry", "entries"))
        });
        Some(Finding {
            rule: "table-fills",
            weight: Weight::Omen,
            share: ratio(entries, limit),
            sentence: format!(
                "{label} neighbour table has {} of {} entries ({}){until}{held}; nothing is \
                 refused yet",
                count(entries),
                count(limit),
                share(entries, limit)
            ),
            since: None,
            figures: figures([
                ("family", json!(family)),
                ("entries", json!(entries)),
                ("limit", json!(limit)),
                ("pressure", json!(table.pressure)),
                (
                    "time_until_full_seconds",
                    json!(table.time_until_full_seconds),
                ),
                ("top_holder", json!(holder.map(|(pod, _)| name(pod)))),
                ("top_holder_entries", json!(holder.map(|(_, n)| n))),
            ]),
            next: raise(family, Some(table)),
            unknown: None,
        })
    };
    FAMILIES.into_iter().filter_map(rule).collect()
}

/// It was full within the last hour.
pub(super) fn was_full(facts: &Facts) -> Vec<Finding> {
    let rule = |(family, label): (&str, &str)| -> Option<Finding> {
        let episode = facts.episode("neighbour", &format!("{family}_table_full"))?;
        let over = episode.recent_failed == 0;
        let ago = later(&episode.last, &facts.snapshot.time)?.as_secs();
        if !over || ago > PAST_SECONDS {
            return None;
        }
        let now = &facts.snapshot.time;
        let of = facts
            .pod
            .map_or_else(String::new, |pod| format!(" of {}", name(pod)));
        Some(Finding {
            rule: "was-full",
            weight: Weight::Past,
            share: ratio(episode.failed, episode.attempts),
            sentence: format!(
                "{label} neighbour table was full from {} to {}: {}{of} refused; none since",
                moment(&episode.since, now),
                moment(&episode.last, now),
                counted(episode.failed, "new entry", "new entries"),
            ),
            since: Some(episode.since.clone()),
            figures: figures([
                ("family", json!(family)),
                ("refused", json!(episode.failed)),
                ("last", json!(episode.last)),
            ]),
            next: format!(
                "tracer events --since {}m --kind neighbour_overflow",
                ago / 60 + 10
            ),
            unknown: None,
        })
    };
    FAMILIES.into_iter().filter_map(rule).collect()
}

/// The command that makes room: what `doctor` advises.
fn raise(family: &str, table: Option<&Table>) -> String {
    let Some(table) = table else {
        return "tracer doctor".into();
    };
    let peak = table
        .entries_peak_since_start
        .max(table.entries.unwrap_or(0));
    let [low, middle, high] = thresholds_for(peak, table.limits[2]);
    let key = format!("net.{family}.neigh.default.gc_thresh");
    format!("sysctl -w {key}3={high} {key}2={middle} {key}1={low}")
}
