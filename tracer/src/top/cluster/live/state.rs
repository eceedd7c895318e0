//! What the view of all nodes shows, changed by data and by keys. No terminal and no clock here.

use std::time::Duration;

use super::super::columns::NodeColumn;
use super::super::nodes::{Cluster, Node};
use super::super::pods::NodePods;
use super::super::{reason, sorted};
use crate::config::ClusterConfig;

/// What comes from the server.
#[derive(Debug)]
pub(super) enum Update {
    /// All nodes.
    Cluster(Box<Cluster>),
    /// The pods of one.
    Pods(Box<NodePods>),
    /// No answer, for this reason.
    Silent(String),
}

/// Everything that drawing depends on.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub(super) struct State {
    /// Who is asked.
    pub base: String,
    /// What the figures are of.
    pub range: Duration,
    /// All nodes.
    pub cluster: Option<Cluster>,
    /// Pods of the node that is open, once they are there.
    pub pods: Option<NodePods>,
    waiting: Option<Cluster>,
    waiting_pods: Option<NodePods>,
    /// Why no figures come, if none come.
    pub silent: Option<String>,
    /// The node that is open; `None`: the table of all.
    pub open: Option<String>,
    /// The node under the cursor; `None`: the first one.
    pub selected: Option<String>,
    /// Lines scrolled down in an open node.
    pub scrolled: usize,
    /// Column to sort by.
    pub sort: NodeColumn,
    /// Against its usual order.
    pub reverse: bool,
    /// Only odd nodes.
    pub hide_well: bool,
    /// Only nodes whose name or reason has this.
    pub filter: String,
    /// The filter is being typed.
    pub editing: bool,
    /// The keys are explained on top.
    pub help: bool,
    /// Nothing on the screen changes.
    pub frozen: bool,
    /// Told in the bottom line until the next key.
    pub message: Option<String>,
}

impl State {
    /// As the user asked for it.
    pub fn new(config: &ClusterConfig, base: &str) -> Self {
        Self {
            base: base.to_owned(),
            range: config.range,
            open: config.node.clone(),
            selected: config.node.clone(),
            sort: config.sort,
            ..Self::default()
        }
    }

    /// Takes news over.
    pub fn update(&mut self, update: Update) {
        match update {
            Update::Cluster(cluster) => {
                self.silent = None;
                self.waiting = Some(*cluster);
            }
            // Those of a node that was closed meanwhile are of no use.
            Update::Pods(pods) if self.open.as_ref() == Some(&pods.node) => {
                self.waiting_pods = Some(*pods);
            }
            Update::Pods(_) => {}
            Update::Silent(why) => self.silent = Some(why),
        }
        // What was never seen is shown even where the screen stands still.
        if !self.frozen || self.cluster.is_none() {
            self.cluster = self.waiting.take().or(self.cluster.take());
        }
        if !self.frozen || self.pods.is_none() {
            self.pods = self.waiting_pods.take().or(self.pods.take());
        }
    }

    /// Stops the screen, or lets it go on with what came meanwhile.
    pub fn toggle_frozen(&mut self) {
        self.frozen = !self.frozen;
        if !self.frozen {
            self.cluster = self.waiting.take().or(self.cluster.take());
            self.pods = self.waiting_pods.take().or(self.pods.take());
        }
    }

    /// Nodes that show, in their order.
    pub fn visible(&self) -> Vec<&Node> {
        let Some(cluster) = &self.cluster else {
            return Vec::new();
        };
        let filter = self.filter.to_lowercase();
        let shows = |node: &&Node| {
            (!self.hide_well || node.is_odd())
                && (filter.is_empty()
                    || node.name.to_lowercase().contains(&filter)
                    || reason::of(node, self.range)
                        .to_lowercase()
                        .contains(&filter))
        };
        let mut rows: Vec<&Node> = sorted(cluster, self.sort)
            .into_iter()
            .filter(shows)
            .collect();
        if self.reverse {
            rows.reverse();
        }
        rows
    }

    /// Where the cursor stands among these rows.
    pub fn cursor(&self, rows: &[&Node]) -> usize {
        let selected = self.selected.as_ref();
        selected
            .and_then(|name| rows.iter().position(|node| node.name == *name))
            .unwrap_or(0)
    }

    /// Moves the cursor, or scrolls an open node.
    pub fn scroll(&mut self, by: isize) {
        if self.open.is_some() {
            self.scrolled = self.scrolled.saturating_add_signed(by).min(2000);
            return;
        }
        let rows = self.visible();
        let Some(last) = rows.len().checked_sub(1) else {
            return;
        };
        let at = self.cursor(&rows).saturating_add_signed(by).min(last);
        // At the top it stays with the oddest, whichever that is.
        let name = rows[at].name.clone();
        self.selected = (at > 0).then_some(name);
    }

    /// Opens the node under the cursor.
    pub fn open_selected(&mut self) {
        let rows = self.visible();
        if let Some(node) = rows.get(self.cursor(&rows)) {
            let name = node.name.clone();
            self.selected = Some(name.clone());
            self.open = Some(name);
            self.pods = None;
            self.waiting_pods = None;
            self.scrolled = 0;
        }
    }

    /// The node that is open, as long as it is known.
    pub fn opened_node(&self) -> Option<&Node> {
        let name = self.open.as_ref()?;
        let mut nodes = self.cluster.as_ref()?.nodes.iter();
        nodes.find(|node| node.name == *name)
    }

    /// One step back.
    pub fn back(&mut self) {
        if self.open.take().is_some() {
            self.pods = None;
        } else if self.filter.is_empty() {
            self.selected = None;
        } else {
            self.filter.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(names: &[&str]) -> State {
        let nodes = names.iter().map(|name| Node {
            name: (*name).to_owned(),
            ..Node::default()
        });
        let mut state = State::default();
        state.update(Update::Cluster(Box::new(Cluster {
            nodes: nodes.collect(),
            ..Cluster::default()
        })));
        state
    }

    fn pods(node: &str) -> Update {
        Update::Pods(Box::new(NodePods {
            node: node.to_owned(),
            ..NodePods::default()
        }))
    }

    #[test]
    fn pods_are_of_the_node_that_is_open() {
        let mut state = state(&["a", "b"]);
        state.scroll(1);
        state.open_selected();
        assert_eq!(state.open.as_deref(), Some("b"));
        state.update(pods("a"));
        assert!(state.pods.is_none());
        state.update(pods("b"));
        assert!(state.pods.is_some());
        state.back();
        assert!(state.pods.is_none() && state.open.is_none());
        assert_eq!(state.cursor(&state.visible()), 1);
        state.scroll(isize::MIN);
        state.open_selected();
        assert_eq!(state.open.as_deref(), Some("a"));
    }

    #[test]
    fn a_frozen_screen_goes_on_with_what_came() {
        let mut state = state(&["a"]);
        state.toggle_frozen();
        let mut other = super::tests::state(&["b"]);
        let new = other.cluster.take().expect("it is there");
        state.update(Update::Cluster(Box::new(new)));
        assert_eq!(state.visible()[0].name, "a");
        state.toggle_frozen();
        assert_eq!(state.visible()[0].name, "b");
    }

    #[test]
    fn filters_hide_nodes() {
        let mut state = state(&["node-a", "node-b"]);
        state.filter = "B".into();
        assert_eq!(state.visible().len(), 1);
        state.hide_well = true;
        assert!(state.visible().is_empty());
    }
}
