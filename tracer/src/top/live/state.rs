//! What the live view shows, changed by data and by keys. No terminal and no clock here: drawing is
//! a function of this.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::log::{Log, mark};
use super::trends::Trends;
use crate::config::TopConfig;
use crate::export::snapshot::{Pod, Snapshot};
use crate::top::columns::Column;
use crate::top::table::{Row, rows, sort_rows, total};
use crate::why::evidence::Failure;
use crate::why::{self, Verdict};

/// What comes from the agent or the engine.
#[derive(Debug)]
pub(super) enum Update {
    /// New figures, and how long after the last ones they were taken.
    Figures(Box<Snapshot>, Duration),
    /// A failure.
    Event(Failure),
    /// So many events were too fast.
    Missed(u64),
    /// No figures came, for this reason.
    Silent(String),
    /// A stream of events begins, with events that have been told.
    StreamBegins,
    /// No events come, for this reason.
    EventsSilent(String),
}

impl Update {
    /// Is it more than one event of many?
    pub fn changes_figures(&self) -> bool {
        matches!(self, Self::Figures(..) | Self::Silent(_))
    }
}

/// What is on the screen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum View {
    /// The table of pods.
    #[default]
    Pods,
    /// One pod.
    Detail {
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
    },
    /// The stream of events.
    Events,
}

/// Figures made ready to be drawn.
#[derive(Debug)]
pub(super) struct Shown {
    /// As it came.
    pub snapshot: Arc<Snapshot>,
    /// Of the node.
    pub total: Row,
    /// Of every pod, in no order.
    pub rows: Vec<Row>,
    /// On the node.
    pub verdict: Verdict,
}

/// Everything that drawing depends on.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub(super) struct State {
    /// Who traces.
    pub in_process: bool,
    /// The figures on the screen.
    pub shown: Option<Shown>,
    /// What came while the screen is frozen.
    waiting: Option<Shown>,
    before: Option<Arc<Snapshot>>,
    /// Seconds that figures have come for.
    seconds: f64,
    /// Why no figures come, and for how long, if none come.
    pub silent: Option<(String, Duration)>,
    /// What the view is of.
    pub view: View,
    /// The keys are explained on top.
    pub help: bool,
    /// Nothing on the screen changes.
    pub frozen: bool,
    /// Column to sort by.
    pub sort: Column,
    /// Against its usual order.
    pub reverse: bool,
    /// Only pods in which something fails.
    pub hide_healthy: bool,
    /// Only pods that hold this text.
    pub pod_filter: String,
    /// Only events that hold this text.
    pub event_filter: String,
    /// The filter is being typed.
    pub editing: bool,
    /// The pod that the cursor is on; `None`: the first one.
    pub selected: Option<(String, String)>,
    /// Lines scrolled back in the events or the detail.
    pub scrolled: usize,
    /// Told in the bottom line until the next key.
    pub message: Option<String>,
    /// What `top` remembers of each pod.
    pub trends: Trends,
    /// The events.
    pub log: Log,
    /// Marks of the events that were told by a stream that broke off.
    told: HashSet<u64>,
    /// Why no events come, where none do.
    pub events_silent: Option<String>,
    /// Those of the moment when the events were scrolled back or frozen, so that they stand still.
    pub held_events: Option<Vec<Failure>>,
}

impl State {
    /// As the user asked for it.
    pub fn new(config: &TopConfig, in_process: bool) -> Self {
        Self {
            in_process,
            sort: config.sort,
            ..Self::default()
        }
    }

    /// Takes news over.
    pub fn update(&mut self, update: Update) {
        match update {
            Update::Figures(snapshot, since_last) => self.figures(*snapshot, since_last),
            Update::Event(failure) => {
                if !self.told.remove(&mark(&failure)) {
                    self.log.push(failure);
                }
            }
            Update::StreamBegins => {
                self.told = self.log.marks();
                self.events_silent = None;
            }
            Update::EventsSilent(why) => self.events_silent = Some(why),
            Update::Missed(count) => self.log.missed += count,
            Update::Silent(why) => {
                let since = self
                    .silent
                    .take()
                    .map_or(Duration::ZERO, |(_, since)| since);
                self.silent = Some((why, since));
            }
        }
    }

    /// Time goes by: only what is silent grows older.
    pub fn tick(&mut self, passed: Duration) {
        if let Some((_, since)) = &mut self.silent {
            *since += passed;
        }
    }

    fn figures(&mut self, snapshot: Snapshot, since_last: Duration) {
        self.silent = None;
        self.seconds += since_last.as_secs_f64();
        let snapshot = Arc::new(snapshot);
        self.trends.note(self.seconds as u64, &snapshot);
        // The first figures have nothing to be compared with: no rates yet.
        let before = self.before.as_ref().unwrap_or(&snapshot);
        let mut rows = rows(before, &snapshot, since_last, self.sort);
        for row in &mut rows {
            let trend = self.trends.of(row.key());
            row.p50 = trend.and_then(|t| t.quantile(0.5));
            row.p99 = trend.and_then(|t| t.quantile(0.99));
        }
        let shown = Shown {
            total: total(before, &snapshot, since_last),
            rows,
            verdict: why::judge(&snapshot, self.log.all(), None),
            snapshot: Arc::clone(&snapshot),
        };
        self.before = Some(snapshot);
        if self.frozen {
            self.waiting = Some(shown);
        } else {
            self.shown = Some(shown);
        }
    }

    /// Stops the screen, or lets it go on with what came meanwhile.
    pub fn toggle_frozen(&mut self) {
        self.frozen = !self.frozen;
        if self.frozen {
            self.hold_events();
        } else {
            if let Some(waiting) = self.waiting.take() {
                self.shown = Some(waiting);
            }
            self.held_events = None;
            self.scrolled = 0;
        }
    }

    /// Events stand still from here on.
    pub fn hold_events(&mut self) {
        if self.held_events.is_none() {
            self.held_events = Some(self.log.all().to_vec());
        }
    }

    /// Back to the newest events, unless the screen is frozen.
    pub fn release_events(&mut self) {
        self.scrolled = 0;
        if !self.frozen {
            self.held_events = None;
        }
    }

    /// What this view is filtered by.
    pub fn filter(&mut self) -> &mut String {
        match self.view {
            View::Events => &mut self.event_filter,
            View::Pods | View::Detail { .. } => &mut self.pod_filter,
        }
    }

    /// Rows that show, in their order.
    pub fn visible_rows(&self) -> Vec<&Row> {
        let Some(shown) = &self.shown else {
            return Vec::new();
        };
        let filter = self.pod_filter.to_lowercase();
        let mut visible: Vec<&Row> = shown
            .rows
            .iter()
            .filter(|row| !self.hide_healthy || row.is_failing())
            .filter(|row| {
                let name = format!("{}/{}", row.namespace, row.pod).to_lowercase();
                let cause = row.cause.as_deref().unwrap_or_default();
                name.contains(&filter) || cause.contains(&filter)
            })
            .collect();
        sort_rows(&mut visible, self.sort, self.reverse);
        visible
    }

    /// Where the cursor stands among these rows.
    pub fn cursor(&self, rows: &[&Row]) -> usize {
        let selected = self.selected.as_ref();
        selected
            .and_then(|(namespace, pod)| {
                rows.iter()
                    .position(|row| row.key() == (namespace.as_str(), pod.as_str()))
            })
            .unwrap_or(0)
    }

    /// Moves the cursor by so many rows; the pod then keeps it, wherever it is sorted to.
    pub fn move_cursor(&mut self, by: isize) {
        let rows = self.visible_rows();
        let Some(last) = rows.len().checked_sub(1) else {
            return;
        };
        let at = self.cursor(&rows).saturating_add_signed(by).min(last);
        // Above all others it is the worst that counts, whoever that is.
        let key = rows[at].key();
        let key = (key.0.to_owned(), key.1.to_owned());
        self.selected = (at > 0).then_some(key);
    }

    /// Opens the pod under the cursor.
    pub fn open(&mut self) {
        let rows = self.visible_rows();
        if let Some(row) = rows.get(self.cursor(&rows)) {
            let (namespace, pod) = (row.namespace.clone(), row.pod.clone());
            self.selected = Some((namespace.clone(), pod.clone()));
            self.view = View::Detail { namespace, pod };
            self.scrolled = 0;
        }
    }

    /// The pod of the detail, as long as it is known.
    pub fn detail(&self) -> Option<&Pod> {
        let View::Detail { namespace, pod } = &self.view else {
            return None;
        };
        let mut pods = self.shown.as_ref()?.snapshot.pods.iter();
        pods.find(|p| p.namespace == *namespace && p.pod == *pod)
    }

    /// Events that show, newest first.
    pub fn visible_events(&self) -> Vec<&Failure> {
        match &self.held_events {
            Some(held) => {
                let filter = self.event_filter.to_lowercase();
                held.iter()
                    .rev()
                    .filter(|f| super::log::shows(f, &filter))
                    .collect()
            }
            None => self.log.matching(&self.event_filter).collect(),
        }
    }
}
