//! One event as one line for people. Works on whatever JSON comes: a field that is missing shows as
//! `?`, a kind that is unknown shows its fields, and nothing a packet carries can move the cursor.

use std::borrow::Cow;

use serde_json::Value;

use crate::output::{printable, seconds};

/// Time, kind and pod in columns, then a sentence, then the process where one is known.
pub(crate) fn line(event: &Value) -> String {
    let kind = event["kind"].as_str().unwrap_or("?");
    let sentence = told(event);
    let pod = &event["pod"];
    let pod = format!("{}/{}", word(&pod["namespace"]), word(&pod["name"]));
    let text = format!(
        "{:24}  {kind:18}  {pod:28}  {sentence}{}",
        time(event),
        process(event)
    );
    printable(&text).into_owned()
}

/// What an event says of its own, for people.
pub(crate) fn sentence(event: &Value) -> String {
    printable(&told(event)).into_owned()
}

fn told(event: &Value) -> String {
    match event["kind"].as_str().unwrap_or_default() {
        "neighbour_overflow" => overflow(event),
        "neighbour_pressure" => pressure(event),
        "dns_failure" => dns(event),
        "drop" => drop(event),
        "connect_failure" => connect(event),
        _ => unknown(event),
    }
}

/// The agent's time in milliseconds, so that the columns stay straight.
fn time(event: &Value) -> String {
    let time = word(&event["time"]);
    let (whole, fraction) = match time.strip_suffix('Z').map(|t| t.split_once('.')) {
        Some(Some(parts)) => parts,
        Some(None) => (&time[..time.len() - 1], ""),
        None => return time.into_owned(),
    };
    let fraction: String = fraction.chars().take(3).collect();
    format!("{whole}.{fraction:0<3}Z")
}

fn overflow(event: &Value) -> String {
    let [family, destination, device] =
        ["family", "destination", "device"].map(|field| word(&event[field]));
    let table = use_of_table(event);
    format!("{family} table full ({table}): no entry for {destination} on {device}")
}

fn pressure(event: &Value) -> String {
    let [family, state] = ["family", "state"].map(|field| word(&event[field]));
    let until_full = event["time_until_full_seconds"]
        .as_f64()
        .map_or_else(String::new, |s| format!(", full in {}", seconds(s)));
    let table = use_of_table(event);
    format!("{family} table {state} ({table}{until_full})")
}

fn use_of_table(event: &Value) -> String {
    let [entries, limit] = ["entries", "limit"].map(|field| word(&event[field]));
    format!("{entries} of {limit} entries")
}

fn dns(event: &Value) -> String {
    let [qtype, qname, server, outcome, cause] =
        ["qtype", "qname", "server", "outcome", "cause"].map(|field| word(&event[field]));
    let waited = event["waited_seconds"].as_f64();
    let waited = waited.map_or_else(|| "?".into(), seconds);
    let reason = event["drop_reason"]
        .as_str()
        .map_or_else(String::new, |reason| format!(" ({reason})"));
    format!("{qtype} {qname} at {server}: {outcome} after {waited}, because of {cause}{reason}")
}

fn drop(event: &Value) -> String {
    let [protocol, source, destination, reason, device] =
        ["protocol", "source", "destination", "reason", "device"].map(|field| word(&event[field]));
    format!("{protocol} {source} -> {destination}: dropped on {device}, {reason}")
}

fn connect(event: &Value) -> String {
    let [source, destination, result] =
        ["source", "destination", "result"].map(|field| word(&event[field]));
    let optional = |field: &str, words: &str| {
        let value = event[field].as_str().filter(|value| !value.is_empty());
        value.map_or_else(String::new, |value| format!(", {words} {value}"))
    };
    let waited = match event["waited_seconds"].as_f64() {
        Some(waited) => format!(" after {}", seconds(waited)),
        None => String::new(),
    };
    let backend = optional("backend", "redirected to");
    let gone = optional("owner_gone_since", "gone since");
    let owner = optional(
        "last_owner",
        if gone.is_empty() {
            "which is of"
        } else {
            "last owned by"
        },
    );
    format!("{source} -> {destination}: {result}{waited}{backend}{owner}{gone}")
}

/// The fields beyond those of every event.
fn unknown(event: &Value) -> String {
    let common = ["time", "node", "kind", "pod", "netns", "comm", "pid"];
    let Some(fields) = event.as_object() else {
        return String::new();
    };
    let fields: Vec<String> = fields
        .iter()
        .filter(|(name, _)| !common.contains(&name.as_str()))
        .map(|(name, value)| format!("{name}={}", word(value)))
        .collect();
    fields.join(" ")
}

fn process(event: &Value) -> String {
    match event["pid"].as_u64() {
        Some(pid) => format!("  [{} {pid}]", word(&event["comm"])),
        None => String::new(),
    }
}

/// A string without its quotes, anything else as JSON.
fn word(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(s) => s.into(),
        Value::Null => "?".into(),
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use serde_json::json;

    use super::*;
    use crate::export::events::{Details, Event, Pod};

    fn sentence(mut event: Value) -> String {
        event["time"] = json!("2026-01-02T03:04:05.123456789Z");
        event["pod"] = json!({"namespace": "shop", "name": "cart"});
        let line = line(&event);
        let (head, sentence) = line.split_at(76);
        assert!(head.starts_with("2026-01-02T03:04:05.123Z  "), "{line}");
        assert!(head.contains("  shop/cart  "), "{line}");
        sentence.to_owned()
    }

    #[test]
    fn each_kind_reads_as_a_sentence() {
        let overflow = json!({"kind": "neighbour_overflow", "family": "ipv4",
            "destination": "10.0.0.9", "device": "eth0", "entries": 1024, "limit": 1024,
            "comm": "curl", "pid": 42});
        assert_eq!(
            sentence(overflow),
            "ipv4 table full (1024 of 1024 entries): no entry for 10.0.0.9 on eth0  [curl 42]"
        );
        let pressure = json!({"kind": "neighbour_pressure", "family": "ipv6", "entries": 800,
            "limit": 1024, "state": "rising", "time_until_full_seconds": 42.0});
        assert_eq!(
            sentence(pressure),
            "ipv6 table rising (800 of 1024 entries, full in 42.0s)"
        );
        let dns = json!({"kind": "dns_failure", "qname": "a.b.", "qtype": "A",
            "server": "10.0.0.10:53", "id": 7, "outcome": "timeout",
            "cause": "neighbour_table_full", "drop_reason": "neigh_createfail",
            "waited_seconds": 5.0});
        assert_eq!(
            sentence(dns),
            "A a.b. at 10.0.0.10:53: timeout after 5.0s, because of neighbour_table_full \
             (neigh_createfail)"
        );
        let drop = json!({"kind": "drop", "reason": "netfilter_drop", "protocol": "udp",
            "source": "10.0.0.1:1", "destination": "10.0.0.2:2", "device": "eth0"});
        assert_eq!(
            sentence(drop),
            "udp 10.0.0.1:1 -> 10.0.0.2:2: dropped on eth0, netfilter_drop"
        );
        let connect = json!({"kind": "connect_failure", "source": "10.0.0.1:1",
            "destination": "10.0.0.2:2", "result": "refused", "last_owner": "a/b",
            "owner_gone_since": "2026-01-01T00:00:00Z"});
        assert_eq!(
            sentence(connect),
            "10.0.0.1:1 -> 10.0.0.2:2: refused, last owned by a/b, gone since \
             2026-01-01T00:00:00Z"
        );
        let connect = json!({"kind": "connect_failure", "source": "10.0.0.1:1",
            "destination": "10.0.0.2:2", "backend": "10.0.0.3:3", "result": "timeout",
            "last_owner": "a/b", "waited_seconds": 3.0});
        assert_eq!(
            sentence(connect),
            "10.0.0.1:1 -> 10.0.0.2:2: timeout after 3.0s, redirected to 10.0.0.3:3, which is of \
             a/b"
        );
        let new = json!({"kind": "new", "node": "n", "a": 1, "b": "x"});
        assert_eq!(sentence(new), "a=1 b=x");
    }

    #[test]
    fn what_is_missing_does_not_matter() {
        for kind in [
            "neighbour_overflow",
            "neighbour_pressure",
            "dns_failure",
            "drop",
            "connect_failure",
            "",
        ] {
            let line = line(&json!({ "kind": kind }));
            assert!(line.starts_with("? "), "{line}");
            assert!(line.contains("?/?"), "{line}");
        }
        line(&json!({"kind": 3, "time": 4, "pod": 5, "pid": "x"}));
        line(&json!([]));
    }

    #[test]
    fn nothing_reaches_the_terminal_raw() {
        let evil = "\u{1b}]0;owned\u{7}\r\n\u{9b}31m\u{202e}";
        let event = json!({"kind": "dns_failure", "time": evil, "qname": evil, "qtype": evil,
            "server": evil, "outcome": evil, "cause": evil, "drop_reason": evil, "comm": evil,
            "pid": 1, "pod": {"namespace": evil, "name": evil}});
        let other = json!({"kind": evil, evil: {evil: [evil]}});
        for event in [event, other] {
            let line = line(&event);
            assert!(line.chars().all(|c| c == ' ' || c.is_ascii_graphic()));
        }
    }

    proptest! {
        #[test]
        fn whatever_an_event_holds_it_is_one_line(
            texts in vec(any::<String>(), 10),
            waited_seconds in any::<f64>(),
            pid in any::<Option<u32>>(),
        ) {
            let text = |n: usize| texts[n].clone();
            let event = Event {
                time: text(0),
                node: text(1),
                pod: Pod { namespace: text(2), name: text(3), uid: Some(text(4)) },
                netns: 1,
                comm: pid.map(|_| text(5)),
                pid,
                details: Details::DnsFailure {
                    qname: text(6),
                    qtype: text(7),
                    server: text(8),
                    id: 1,
                    outcome: "timeout",
                    cause: "dropped",
                    drop_reason: Some(text(9)),
                    waited_seconds,
                },
            };
            let json = serde_json::to_string(&event).unwrap();
            prop_assert!(!json.contains(|c: char| c.is_ascii_control()), "{:?}", json);
            let line = line(&serde_json::from_str(&json).unwrap());
            prop_assert!(line.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{:?}", line);
        }
    }

    #[test]
    fn times_have_one_width() {
        for (from, to) in [
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000Z"),
            ("2026-01-02T03:04:05.1Z", "2026-01-02T03:04:05.100Z"),
            ("2026-01-02T03:04:05+01:00", "2026-01-02T03:04:05+01:00"),
            ("Z", ".000Z"),
        ] {
            assert_eq!(time(&json!({ "time": from })), to);
        }
    }
}
