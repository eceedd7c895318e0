//! The tables' pressure: forecasts, and an event where it changes.

use std::{
    sync::atomic::Ordering,
    time::{Instant, SystemTime},
};

use super::{Collected, Engine};
use crate::{
    aggregate::pressure::PressureState,
    export::events::{Details, Event, Pod},
    hooks::FAMILY_NAMES,
};

impl Engine {
    /// Forecasts, and tells when a table's pressure changes.
    pub(super) fn watch_pressure(&self, collected: &mut Collected, second: u64) {
        for family in 0..FAMILY_NAMES.len() {
            let (Some(table), Some(entries)) =
                (collected.tables[family], collected.entries[family])
            else {
                collected.seconds_until_full[family] = f64::INFINITY;
                continue;
            };
            let limit = table.limits[2];
            let forecast = &mut collected.forecasts[family];
            forecast.note(second, entries);
            let seconds = forecast.seconds_until(limit);
            collected.seconds_until_full[family] = seconds;
            let change = collected.pressures[family].update(second, entries, limit, seconds);
            if let Some(state) = change {
                self.tell_pressure(family, entries, limit, seconds, state);
            }
        }
    }

    fn tell_pressure(
        &self,
        family: usize,
        entries: u32,
        limit: u32,
        seconds: f64,
        state: PressureState,
    ) {
        let now = SystemTime::now();
        let event = Event {
            time: humantime::format_rfc3339_micros(now).to_string(),
            node: self.config.node.clone(),
            // The table is the kernel's, not any pod's.
            pod: Pod {
                namespace: "(host)".to_owned(),
                name: "(kernel)".to_owned(),
                uid: None,
            },
            netns: self.host_netns.load(Ordering::Relaxed),
            comm: None,
            pid: None,
            details: Details::NeighbourPressure {
                family: FAMILY_NAMES[family],
                entries,
                limit,
                time_until_full_seconds: seconds.is_finite().then_some(seconds),
                state: state.name(),
            },
        };
        self.hub.publish(Instant::now(), &event);
    }
}
