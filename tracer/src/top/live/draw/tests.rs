//! Every view, drawn on a terminal that is only memory, from figures recorded in the lab.

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::{Color, Modifier};

use super::*;
use crate::cli::{Cli, Command};
use crate::config::{File, TopConfig};
use crate::export::snapshot::{DeadEndpoint, Snapshot};
use crate::top::live::keys::{Action, handle};
use crate::top::live::state::Update;
use crate::why::evidence::Failure;

const THEME: Theme = Theme {
    color: true,
    unicode: true,
    old: false,
};

macro_rules! recorded {
    ($name:literal, $kind:literal) => {
        include_str!(concat!("../../../why/rules/recorded/", $name, ".", $kind))
    };
}

fn snapshot(text: &str) -> Snapshot {
    serde_json::from_str(text).unwrap()
}

fn new() -> State {
    let cli = Cli::read(["tracer", "top"]).unwrap();
    let Command::Top(args) = cli.command else {
        panic!("not top");
    };
    let config = TopConfig::new(&args, &File::default()).unwrap();
    State::new(&config, false)
}

fn figures(state: &mut State, snapshot: Snapshot) {
    state.update(Update::Figures(Box::new(snapshot), Duration::from_secs(1)));
}

fn idle() -> State {
    let mut state = new();
    figures(&mut state, snapshot(recorded!("fine", "json")));
    figures(&mut state, snapshot(recorded!("fine", "json")));
    state
}

/// The recorded overflow, half a minute after a quiet beginning, with ten minutes of history.
fn incident() -> State {
    let mut state = new();
    let mut after = snapshot(recorded!("overflow", "json"));
    for (family, last) in [("ipv4", 64), ("ipv6", 4)] {
        let ramp = (0..120).map(|n| n * last / 119).collect();
        after.history.entries.insert(family.into(), ramp);
    }
    for (signal, failed, all) in [("dns", 30, 70), ("neighbour", 120, 184)] {
        let mut past = vec![0; 120];
        past[117..].fill(failed);
        after.history.failed.insert(signal.into(), past);
        after.history.attempts.insert(signal.into(), vec![all; 120]);
    }
    let mut before = snapshot(recorded!("fine", "json"));
    before.since.clone_from(&after.since);
    figures(&mut state, before);
    for line in recorded!("overflow", "ndjson").lines() {
        state.update(Update::Event(Failure::parse(line).unwrap()));
    }
    figures(&mut state, after);
    state
}

fn buffer(state: &State, theme: Theme, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state, theme)).unwrap();
    terminal.backend().buffer().clone()
}

fn screen(state: &State, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state, THEME)).unwrap();
    terminal.backend().to_string()
}

fn press(state: &mut State, keys: &str) {
    for c in keys.chars() {
        let code = match c {
            '\n' => KeyCode::Enter,
            '\x1b' => KeyCode::Esc,
            c => KeyCode::Char(c),
        };
        let event = Event::Key(KeyEvent::new(code, KeyModifiers::NONE));
        assert_ne!(
            handle(state, &event),
            Action::Nothing,
            "{c:?} does something"
        );
    }
}

#[test]
fn idle_at_every_size() {
    for (width, height) in [(80, 24), (120, 40), (200, 60)] {
        let name = format!("idle-{width}x{height}");
        insta::assert_snapshot!(name, screen(&idle(), width, height));
    }
}

#[test]
fn incident_at_every_size() {
    for (width, height) in [(80, 24), (120, 40), (200, 60)] {
        let name = format!("incident-{width}x{height}");
        insta::assert_snapshot!(name, screen(&incident(), width, height));
    }
}

/// The corner of a screen beside an editor: who is hit and what cannot be seen stay.
#[test]
fn small_screens_show_who_is_hit_and_what_is_in_trouble() {
    let mut state = incident();
    let mut after = snapshot(recorded!("overflow", "json"));
    let dns = after.hooks.iter_mut().find(|h| h.name == "dns").unwrap();
    dns.state = "unavailable".into();
    dns.reason = "no cgroup2".into();
    figures(&mut state, after.clone());
    for (width, height) in [(40, 10), (50, 12)] {
        let screen = screen(&state, width, height);
        assert!(screen.contains("(netns)/greedy"), "{screen}");
        assert!(
            screen.contains("hook dns unavailable: no cgroup2"),
            "{screen}"
        );
        insta::assert_snapshot!(format!("small-{width}x{height}"), screen);
    }

    // Nobody answers, and all hooks are in trouble: the head is full of it, and the pods stay.
    for hook in &mut after.hooks {
        hook.state = "unavailable".into();
    }
    let hooks = after.hooks.len();
    figures(&mut state, after);
    state.update(Update::Silent("no agent answers at unix:/x".into()));
    insta::assert_snapshot!("small-silent-40x10", screen(&state, 40, 10));
    for height in 10..50 {
        let screen = screen(&state, 80, height);
        let told = screen.matches('▲').count();
        assert!(screen.contains("(netns)/greedy"), "{screen}");
        assert!(
            told == hooks || screen.contains("more on a taller screen"),
            "{screen}"
        );
        // What matters less shows only where all of it is told.
        assert!(told == hooks || !screen.contains(" failed "), "{screen}");
    }
}

#[test]
fn detail_at_every_size() {
    let mut state = incident();
    press(&mut state, "\n");
    for (width, height) in [(80, 24), (120, 40), (200, 60)] {
        let name = format!("detail-{width}x{height}");
        insta::assert_snapshot!(name, screen(&state, width, height));
    }
}

#[test]
fn events_and_help() {
    let mut state = incident();
    press(&mut state, "e/cold-1\n");
    insta::assert_snapshot!("events-80x24", screen(&state, 80, 24));
    press(&mut state, "\x1b\x1b?");
    insta::assert_snapshot!("help-80x24", screen(&state, 80, 24));
}

#[test]
fn dead_destinations_show_their_last_owner() {
    let mut state = incident();
    let mut after = snapshot(recorded!("overflow", "json"));
    let worst = after.pods.iter_mut().find(|p| p.pod == "greedy").unwrap();
    worst.figures.dead_endpoints = vec![DeadEndpoint {
        destination: "10.0.0.9:8080".into(),
        attempts: 1200,
        last_owner: Some("shop/db-1".into()),
        owner_gone_since: Some("2026-11-22T06:10:00Z".into()),
        ..DeadEndpoint::default()
    }];
    figures(&mut state, after);
    state.selected = Some(("(netns)".into(), "greedy".into()));
    press(&mut state, "\n");
    let screen = screen(&state, 200, 60);
    assert!(
        screen.contains("1,200  10.0.0.9:8080, was shop/db-1 until 06:10:00 UTC"),
        "{screen}"
    );
}

#[test]
fn nothing_yet_and_nobody_answers() {
    let mut state = new();
    assert!(screen(&state, 80, 24).contains("asking for the first figures"));
    state.update(Update::Silent("no agent answers at unix:/x".into()));
    assert!(screen(&state, 80, 24).contains("no agent answers at unix:/x"));
}

#[test]
fn what_is_old_is_grey_and_says_so() {
    let mut state = incident();
    state.update(Update::Silent("no agent answers at unix:/x".into()));
    state.tick(Duration::from_secs(12));
    insta::assert_snapshot!("silent-80x24", screen(&state, 80, 24));
    let buffer = buffer(&state, THEME, 80, 24);
    let badge = buffer.content().iter().filter(|c| c.fg == Color::LightRed);
    // " NO ANSWER 12 s " and nothing else.
    assert_eq!(badge.count(), 16);
    // Answers come again.
    figures(&mut state, snapshot(recorded!("overflow", "json")));
    assert!(!screen(&state, 80, 24).contains("NO ANSWER"));
}

#[test]
fn frozen_stands_still_until_it_goes_on() {
    let mut state = incident();
    press(&mut state, " ");
    let still = screen(&state, 80, 24);
    assert!(still.contains("FROZEN"));
    figures(&mut state, snapshot(recorded!("fine", "json")));
    assert_eq!(screen(&state, 80, 24), still);
    press(&mut state, " ");
    assert!(screen(&state, 80, 24).contains("FINE"));
}

#[test]
fn without_colours_and_without_blocks() {
    let theme = Theme {
        color: false,
        unicode: false,
        old: false,
    };
    let mut state = incident();
    for view in ["", "\n", "\x1be", "\x1b?"] {
        press(&mut state, view);
        let buffer = buffer(&state, theme, 120, 40);
        for cell in buffer.content() {
            assert!(cell.symbol().is_ascii(), "{:?} in {view:?}", cell.symbol());
            assert_eq!((cell.fg, cell.bg), (Color::Reset, Color::Reset));
        }
    }
    press(&mut state, "?");
    let buffer = buffer(&state, theme, 80, 24);
    let bold = buffer.content().iter();
    let bold = bold.filter(|c| c.modifier.contains(Modifier::BOLD)).count();
    assert!(bold > 50, "what matters has weight: {bold}");
}

#[test]
fn any_size_can_be_drawn() {
    let mut state = incident();
    for view in ["", "\n", "\x1be", "\x1b?"] {
        press(&mut state, view);
        for width in (1..130).step_by(7) {
            for height in 1..50 {
                screen(&state, width, height);
            }
        }
    }
}

#[test]
fn names_cannot_draw() {
    let mut after = snapshot(recorded!("overflow", "json"));
    after.pods[0].pod = "\u{1b}[31m\n\u{202e}x".into();
    after.node = "\u{9b}2J".into();
    let mut state = new();
    figures(&mut state, after);
    let buffer = buffer(&state, THEME, 200, 60);
    for cell in buffer.content() {
        assert!(
            !cell.symbol().contains(char::is_control),
            "{:?}",
            cell.symbol()
        );
        assert!(!cell.symbol().contains('\u{202e}'));
    }
}

#[test]
fn the_cursor_keeps_its_pod_and_hidden_pods_stay_hidden() {
    let mut state = incident();
    press(&mut state, "j");
    let pod = state.selected.clone().unwrap();
    press(&mut state, "r");
    let rows = state.visible_rows();
    let at = rows[state.cursor(&rows)];
    assert_eq!(at.key(), (pod.0.as_str(), pod.1.as_str()));
    press(&mut state, "rh");
    assert!(state.visible_rows().iter().all(|row| row.is_failing()));
    press(&mut state, "h/victim\n");
    assert_eq!(state.visible_rows().len(), 1);
    press(&mut state, "\x1b");
    assert!(state.visible_rows().len() > 1);
}
