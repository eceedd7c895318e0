//! [`crate::fuzz`]: every view of an agent's figures, drawn on a terminal that is only memory.

use std::time::Duration;

use ratatui::{Terminal, backend::TestBackend};

use super::{
    draw::{self, Theme},
    state::{State, Update, View},
};
use crate::{export::snapshot::Snapshot, top::fuzz::assert_drawn, why::evidence::Failure};

pub(in crate::top) fn agent(before: &Snapshot, after: &Snapshot, failures: &[Failure]) {
    let theme = Theme {
        color: true,
        unicode: true,
        old: false,
    };
    let mut state = State::default();
    for snapshot in [before, after] {
        state.update(Update::Figures(
            Box::new(snapshot.clone()),
            Duration::from_secs(1),
        ));
        let failures = failures.iter().cloned().map(Update::Event);
        failures.for_each(|failure| state.update(failure));
    }
    let pod = after.pods.first().map(|pod| View::Detail {
        namespace: pod.namespace.clone(),
        pod: pod.pod.clone(),
    });
    for view in [View::Pods, View::Events].into_iter().chain(pod) {
        state.view = view;
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
