//! The neighbour tables: limits, use, and what to set them to.

use std::fmt;

use serde::Serialize;

use crate::{export::snapshot::Snapshot, hooks::FAMILY_NAMES, kernel::neighbour_tables};

/// One neighbour table.
#[derive(Debug, Serialize)]
pub struct NeighbourTable {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// `gc_entries`; `None` where the hook `neigh` cannot run.
    pub entries: Option<u32>,
    /// gc_thresh1, 2, 3.
    pub limits: [u32; 3],
    /// Creations refused since boot.
    pub table_fulls: u64,
    /// Highest `gc_entries` since counting began, which outlives restarts; `None` where no agent answers.
    pub peak_since_start: Option<u64>,
    /// Creations of entries that a forced garbage collection had thrown out within 10 s, since
    /// counting began: many mean that the table thrashes.
    pub recreated: Option<u64>,
    /// What to do, if anything.
    pub advice: Option<Advice>,
}

/// Limits to set, and why.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// Why the present limits do not do.
    pub reason: String,
    /// gc_thresh1, 2, 3 to set.
    pub gc_thresh: [u64; 3],
    /// The lines that set them.
    pub sysctl: Vec<String>,
    /// Kernel memory that a table filled to the new limit takes.
    pub memory_bytes: u64,
}

/// Both tables, with `gc_entries` as read before and what an agent knows of the past.
pub fn examine(entries: [Option<u32>; 2], agent: Option<&Snapshot>) -> Vec<NeighbourTable> {
    let Ok(tables) = neighbour_tables::read() else {
        return Vec::new();
    };
    let pods = agent.map_or(0, |agent| agent.pods.len() as u64);
    FAMILY_NAMES
        .iter()
        .zip(tables)
        .zip(entries)
        .filter_map(|((family, table), entries)| {
            let table = table?;
            let known = agent.and_then(|agent| agent.tables.iter().find(|t| t.family == *family));
            let peak_since_start = known.map(|table| table.entries_peak_since_start);
            let highest = peak_since_start
                .unwrap_or_default()
                .max(entries.unwrap_or_default().into());
            let figures = agent.and_then(|agent| agent.total.neighbour.get(*family));
            let seen = Seen {
                highest,
                refused: figures.map(|figures| figures.table_full),
                pods,
            };
            Some(NeighbourTable {
                family,
                entries,
                limits: table.limits,
                table_fulls: table.table_fulls,
                peak_since_start,
                recreated: figures.map(|figures| figures.recreated),
                advice: advice(family, &seen, table.limits, table.table_fulls),
            })
        })
        .collect()
}

/// The kernel's gc_thresh3 (net/ipv4/arp.c, net/ipv6/ndisc.c); few set a lower one.
const DEFAULT_LIMIT: u64 = 1024;
/// One entry in the kernel's slab: `struct neighbour` and its key are 330 to 350 bytes.
const ENTRY_BYTES: u64 = 512;

/// gc_thresh1, 2, 3 to set: twice what was seen, or twice a limit that did not do; never less than
/// what the kernel's documentation proposes for a busy router.
pub(crate) fn thresholds_for(highest: u64, limit: u64) -> [u64; 3] {
    let high = (highest.max(limit) * 2).next_power_of_two().max(4096);
    [high / 4, high / 2, high]
}

/// What is known of a table's past.
struct Seen {
    /// Most entries.
    highest: u64,
    /// Creations refused while an agent counted.
    refused: Option<u64>,
    /// Pods that share it.
    pods: u64,
}

/// What to do about a table, from the most entries seen and what was refused. The kernel does not forget what it has
/// refused when the limits are raised.
fn advice(family: &str, seen: &Seen, limits: [u32; 3], table_fulls: u64) -> Option<Advice> {
    let (limit, highest) = (u64::from(limits[2]), seen.highest);
    let is_short = highest * 10 >= limit * 7;
    let reason = match (table_fulls, seen.refused) {
        (0, _) if is_short => {
            format!("up to {highest} of {limit} entries were in use, more than 70 %")
        }
        (0, _) => return None,
        (fulls, _) if is_short => format!("{fulls} creations were refused since boot"),
        // Who refused had all entries in use, and an agent saw so many: the limit has been raised since.
        (_, Some(1..)) if highest >= DEFAULT_LIMIT => return None,
        (fulls, _) => format!(
            "{fulls} creations were refused since boot (if the limits have been raised since, leave them)"
        ),
    };
    let reason = match seen.pods {
        0 => reason,
        pods => format!("{reason}; {pods} pods and host services share the table"),
    };
    let gc_thresh = thresholds_for(highest, limit);
    Some(Advice {
        reason,
        gc_thresh,
        sysctl: (1..)
            .zip(gc_thresh)
            .map(|(n, value)| format!("sysctl -w net.{family}.neigh.default.gc_thresh{n}={value}"))
            .collect(),
        memory_bytes: gc_thresh[2] * ENTRY_BYTES,
    })
}

impl fmt::Display for NeighbourTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self
            .entries
            .map_or_else(|| "-".to_owned(), |entries| entries.to_string());
        let [low, middle, high] = self.limits;
        writeln!(
            f,
            "      {:<15} {entries} of {high} entries (gc_thresh {low}/{middle}/{high}), {} refused since boot",
            self.family, self.table_fulls
        )?;
        self.details(f)
    }
}

impl NeighbourTable {
    fn details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(peak) = self.peak_since_start {
            let recreated = self.recreated.unwrap_or_default();
            writeln!(
                f,
                "      {:<15} since counting began: at most {peak} entries, {recreated} made again within 10 s of a forced collection",
                ""
            )?;
        }
        let Some(advice) = &self.advice else {
            return Ok(());
        };
        writeln!(
            f,
            "      {:<15} {}; raise the limits (full, the table then takes {:.1} MB):",
            "",
            advice.reason,
            advice.memory_bytes as f64 / 1e6
        )?;
        for line in &advice.sysctl {
            writeln!(f, "      {:<15}   {line}", "")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(highest: u64, pods: u64) -> Seen {
        Seen {
            highest,
            refused: None,
            pods,
        }
    }

    #[test]
    fn a_healthy_table_needs_no_advice() {
        assert_eq!(advice("ipv4", &seen(10, 5), [128, 512, 1024], 0), None);
    }

    #[test]
    fn limits_that_were_raised_are_not_to_be_raised_again() {
        let mut seen = seen(1024, 5);
        seen.refused = Some(7);
        let default = [128, 512, 1024];
        let raised = advice("ipv4", &seen, default, 7).unwrap().gc_thresh;
        let raised = raised.map(|limit| limit as u32);
        assert_eq!(advice("ipv4", &seen, raised, 7), None);
        // Refused while no agent counted: nobody knows at which limit.
        for refused in [None, Some(0), Some(7)] {
            let seen = Seen {
                highest: 10,
                refused,
                pods: 0,
            };
            let reason = advice("ipv4", &seen, raised, 7).unwrap().reason;
            assert!(reason.contains("raised since"), "{reason}");
        }
    }

    #[test]
    fn a_full_table_gets_room_for_twice_as_much() {
        let filled = advice("ipv4", &seen(717, 0), [128, 512, 1024], 0).unwrap();
        assert!(filled.reason.contains("70 %"), "{}", filled.reason);
        let refused = advice("ipv6", &seen(5000, 30), [1024, 2048, 4096], 3).unwrap();
        assert_eq!(refused.gc_thresh, [4096, 8192, 16384]);
        assert_eq!(
            refused.sysctl[2],
            "sysctl -w net.ipv6.neigh.default.gc_thresh3=16384"
        );
        assert!(refused.reason.contains("30 pods"), "{}", refused.reason);
    }
}
