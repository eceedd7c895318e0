//! Connection tracking's part of the report.

use std::fmt;

use serde::Serialize;

use crate::kernel::conntrack::{Conntrack, Reader};

/// Share of the limit from which the table is too full, per cent.
const TOO_FULL: u64 = 80;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Connections in the table.
    pub entries: u32,
    /// `nf_conntrack_max`; 0 is no limit.
    pub limit: u32,
    /// `entries` of `limit`, per cent.
    pub used_percent: f64,
    /// Connections that could not be inserted, since boot; `None` where the kernel does not say.
    pub insert_failed: Option<u64>,
    /// Packets dropped since boot, likewise.
    pub drops: Option<u64>,
    /// Entries thrown out of a full table since boot, likewise.
    pub early_drops: Option<u64>,
    /// What to do, if anything.
    pub advice: Option<Advice>,
}

/// A limit to set, and why.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// Why the present limit does not do.
    pub reason: String,
    /// The line that sets another.
    pub sysctl: String,
}

/// Looks at it; `None` where the kernel tracks no connections.
pub fn examine() -> Option<Report> {
    // What cannot be read is not there for tracer either.
    let figures = Reader::default().read().ok()??;
    Some(report(figures))
}

fn report(figures: Conntrack) -> Report {
    let Conntrack {
        entries,
        limit,
        counters,
    } = figures;
    let early_drops = counters.map(|counters| counters.early_drops);
    Report {
        entries,
        limit,
        used_percent: match limit {
            0 => 0.0,
            limit => f64::from(entries) * 100.0 / f64::from(limit),
        },
        insert_failed: counters.map(|counters| counters.insert_failed),
        drops: counters.map(|counters| counters.drops),
        early_drops,
        advice: advice(
            entries.into(),
            limit.into(),
            early_drops.unwrap_or_default(),
        ),
    }
}

fn advice(entries: u64, limit: u64, early_drops: u64) -> Option<Advice> {
    let reason = if limit == 0 {
        return None;
    } else if entries * 100 > limit * TOO_FULL {
        format!("{entries} of {limit} entries are in use, more than {TOO_FULL} %")
    } else if early_drops > 0 {
        format!(
            "the table was full: {early_drops} entries were thrown out early since boot (if the limit has been raised \
             since, leave it)"
        )
    } else {
        return None;
    };
    Some(Advice {
        reason,
        sysctl: format!("sysctl -w net.netfilter.nf_conntrack_max={}", limit * 2),
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entries, limit, .. } = self;
        write!(
            f,
            "      {:<15} {entries} of {limit} entries ({:.0} %)",
            "", self.used_percent
        )?;
        match (self.drops, self.insert_failed) {
            (Some(drops), Some(insert_failed)) => writeln!(
                f,
                ", {drops} packets dropped and {insert_failed} insertions failed since boot"
            )?,
            _ => writeln!(f, "; the kernel does not give its counters")?,
        }
        if let Some(Advice { reason, sysctl }) = &self.advice {
            writeln!(f, "      {:<15} {reason}; raise the limit", "")?;
            writeln!(
                f,
                "      {:<15} (where kube-proxy runs, by its --conntrack-max-per-core):",
                ""
            )?;
            writeln!(f, "      {:<15}   {sysctl}", "")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::conntrack::Counters;

    #[test]
    fn only_a_table_that_is_or_was_too_full_gets_advice() {
        assert_eq!(advice(80, 100, 0), None);
        assert_eq!(advice(80, 0, 3), None);
        let full = advice(81, 100, 0).unwrap();
        assert!(full.reason.contains("more than 80 %"), "{}", full.reason);
        assert_eq!(full.sysctl, "sysctl -w net.netfilter.nf_conntrack_max=200");
        let was = advice(1, 100, 7).unwrap();
        assert!(was.reason.contains("7 entries"), "{}", was.reason);
    }

    #[test]
    fn missing_counters_are_said() {
        let figures = Conntrack {
            entries: 50,
            limit: 200,
            counters: None,
        };
        let text = report(figures).to_string();
        assert!(
            text.contains("50 of 200 entries (25 %); the kernel does not"),
            "{text}"
        );
        let counters = Some(Counters {
            drops: 3,
            ..Counters::default()
        });
        let text = report(Conntrack {
            counters,
            ..figures
        })
        .to_string();
        assert!(
            text.contains(", 3 packets dropped and 0 insertions"),
            "{text}"
        );
    }
}
