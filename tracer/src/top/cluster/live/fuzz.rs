//! [`crate::fuzz`]: both views, drawn on a terminal that is only memory.

use ratatui::{Terminal, backend::TestBackend};

use super::{
    super::{nodes::Cluster, pods::NodePods},
    draw,
    state::{State, Update},
};
use crate::top::{fuzz::assert_drawn, live::draw::theme::Theme};

pub(in crate::top::cluster) fn prometheus(cluster: &Cluster, pods: &NodePods) {
    let theme = Theme {
        color: true,
        unicode: true,
        old: false,
    };
    for open in [None, Some(pods.node.clone())] {
        let mut state = State::default();
        state.open = open;
        state.update(Update::Cluster(Box::new(cluster.clone())));
        state.update(Update::Pods(Box::new(pods.clone())));
        for (width, height) in [(40, 10), (132, 50)] {
            let mut terminal =
                Terminal::new(TestBackend::new(width, height)).expect("memory is a terminal");
            terminal
                .draw(|frame| draw::draw(frame, &state, theme))
                .expect("memory takes it");
            assert_drawn(terminal.backend().buffer());
        }
    }
}
