//! Figures in words, for sentences.

use std::time::{Duration, SystemTime};

use super::evidence::parse_time;
use crate::export::snapshot::Pod;

/// `1,024`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 entry`, `1,024 entries`.
pub fn counted(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(n), if n == 1 { one } else { many })
}

/// `4.8 %`; a few in a million are not none, nor almost all all.
pub fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "0 %".into();
    }
    let percent = 100.0 * part as f64 / whole as f64;
    match percent {
        p if part == 0 || p <= 0.0 => "0 %".into(),
        p if p < 0.1 => "less than 0.1 %".into(),
        _ if part >= whole => "100 %".into(),
        p => format!("{:.1} %", p.min(99.9)),
    }
}

/// `45 s`, `4 min`, `3 h`.
pub fn span(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

/// `13:29:07 UTC`, with the date where it is not the day of `now`. Both RFC 3339, UTC.
pub fn moment(time: &str, now: &str) -> String {
    let parts = |t: &str| {
        let (date, time) = t.split_once('T')?;
        Some((date.to_owned(), time.get(..8)?.to_owned()))
    };
    match (parts(time), parts(now)) {
        (Some((date, time)), Some((today, _))) if date == today => format!("{time} UTC"),
        (Some((date, time)), _) => format!("{date} {time} UTC"),
        _ => time.to_owned(),
    }
}

/// Of the two times, by how much the second is later; none where either cannot be read.
pub fn later(from: &str, to: &str) -> Option<Duration> {
    let [from, to]: [Option<SystemTime>; 2] = [from, to].map(parse_time);
    to?.duration_since(from?).ok()
}

/// `shop/cart`.
pub fn name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace, pod.pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        let counts = [0, 999, 1024, 1_234_567].map(count);
        assert_eq!(counts, ["0", "999", "1,024", "1,234,567"]);
        assert_eq!(
            [1, 2].map(|n| counted(n, "pod", "pods")),
            ["1 pod", "2 pods"]
        );
        let shares = [(0, 5), (1, 9999), (48, 1000), (9999, 10000), (5, 5), (1, 0)]
            .map(|(part, whole)| share(part, whole));
        let expected = ["0 %", "less than 0.1 %", "4.8 %", "99.9 %", "100 %", "0 %"];
        assert_eq!(shares, expected);
        let spans = [5.0, 89.0, 240.0, 7200.0, 200_000.0].map(span);
        assert_eq!(spans, ["5 s", "89 s", "4 min", "2 h", "2 days"]);
    }

    #[test]
    fn moments_name_the_day_only_where_it_is_another() {
        let now = "2026-01-02T14:00:00.5Z";
        assert_eq!(moment("2026-01-02T13:29:07Z", now), "13:29:07 UTC");
        assert_eq!(
            moment("2026-01-01T13:29:07Z", now),
            "2026-01-01 13:29:07 UTC"
        );
        assert_eq!(moment("yesterday", now), "yesterday");
        assert_eq!(
            later("2026-01-02T13:59:00Z", now),
            Some(Duration::from_millis(60_500))
        );
    }
}
