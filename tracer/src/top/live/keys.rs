//! What each key and the mouse's wheel do.

use ratatui::crossterm::event::{
    Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseEventKind,
};

use super::state::{State, View};
use crate::top::columns::Column;

/// What the loop has to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::top) enum Action {
    /// Draw again.
    Draw,
    /// Draw all anew, whatever the screen holds.
    Redraw,
    /// End.
    Quit,
    /// Stop, as a shell expects of Ctrl-Z.
    Suspend,
    /// Write what is seen to a file.
    Export,
    /// Nothing has changed.
    Nothing,
}

/// Rows that the wheel moves by.
const WHEEL: isize = 3;
/// Rows of a page: less than any screen that shows anything.
const PAGE: isize = 10;

/// Takes an event of the terminal over.
pub(super) fn handle(state: &mut State, event: &Event) -> Action {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => press(state, *key),
        Event::Mouse(mouse) => match mouse.kind {
            MouseEventKind::ScrollUp => scroll(state, -WHEEL),
            MouseEventKind::ScrollDown => scroll(state, WHEEL),
            _ => Action::Nothing,
        },
        Event::Resize(..) => Action::Redraw,
        _ => Action::Nothing,
    }
}

fn press(state: &mut State, key: KeyEvent) -> Action {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c') => Action::Quit,
            KeyCode::Char('z') => Action::Suspend,
            KeyCode::Char('l') => Action::Redraw,
            KeyCode::Char('d' | 'f') => scroll(state, PAGE),
            KeyCode::Char('u' | 'b') => scroll(state, -PAGE),
            _ => Action::Nothing,
        };
    }
    state.message = None;
    if state.editing {
        return edit(state, key.code);
    }
    if state.help {
        // Any key closes it, and q ends nothing by surprise.
        state.help = false;
        return Action::Draw;
    }
    match key.code {
        KeyCode::Char('q') => return Action::Quit,
        KeyCode::Char('x') => return Action::Export,
        KeyCode::Char('?') | KeyCode::F(1) => state.help = true,
        KeyCode::Char(' ' | 'f') => state.toggle_frozen(),
        KeyCode::Char('/') if !matches!(state.view, View::Detail { .. }) => state.editing = true,
        KeyCode::Char('e') => {
            state.release_events();
            state.view = match state.view {
                View::Events => View::Pods,
                _ => View::Events,
            };
        }
        KeyCode::Esc | KeyCode::Backspace => back(state),
        KeyCode::Enter | KeyCode::Char('l') if state.view == View::Pods => state.open(),
        KeyCode::Char('h') if state.view == View::Pods => {
            state.hide_healthy = !state.hide_healthy;
        }
        KeyCode::Char('s' | '>') | KeyCode::Right => next_column(state, 1),
        KeyCode::Char('S' | '<') | KeyCode::Left => next_column(state, Column::ALL.len() - 1),
        KeyCode::Char('w') => state.sort = Column::Worst,
        KeyCode::Char('r') => state.reverse = !state.reverse,
        KeyCode::Up | KeyCode::Char('k') => return scroll(state, -1),
        KeyCode::Down | KeyCode::Char('j') => return scroll(state, 1),
        KeyCode::PageUp => return scroll(state, -PAGE),
        KeyCode::PageDown => return scroll(state, PAGE),
        KeyCode::Home | KeyCode::Char('g') => return scroll(state, isize::MIN),
        KeyCode::End | KeyCode::Char('G') => return scroll(state, isize::MAX),
        _ => return Action::Nothing,
    }
    Action::Draw
}

/// One step towards the table of all pods.
fn back(state: &mut State) {
    let in_detail = matches!(state.view, View::Detail { .. });
    if !in_detail && !state.filter().is_empty() {
        state.filter().clear();
    } else if state.view != View::Pods {
        state.view = View::Pods;
        state.release_events();
    } else {
        state.selected = None;
    }
}

fn edit(state: &mut State, code: KeyCode) -> Action {
    match code {
        KeyCode::Enter => state.editing = false,
        KeyCode::Esc => {
            state.editing = false;
            state.filter().clear();
        }
        KeyCode::Backspace => {
            state.filter().pop();
        }
        // Names are ASCII, and so is all that a terminal is shown.
        KeyCode::Char(c) if c.is_ascii_graphic() || c == ' ' => state.filter().push(c),
        KeyCode::Up => return scroll(state, -1),
        KeyCode::Down => return scroll(state, 1),
        _ => return Action::Nothing,
    }
    Action::Draw
}

fn next_column(state: &mut State, by: usize) {
    let all = Column::ALL;
    let at = all.iter().position(|(c, _)| *c == state.sort).unwrap_or(0);
    state.sort = all[(at + by) % all.len()].0;
}

fn scroll(state: &mut State, by: isize) -> Action {
    match state.view {
        View::Pods => state.move_cursor(by),
        View::Detail { .. } => state.scrolled = state.scrolled.saturating_add_signed(by).min(1000),
        View::Events => {
            state.hold_events();
            let last = state.visible_events().len().saturating_sub(1);
            state.scrolled = state.scrolled.saturating_add_signed(by).min(last);
            if state.scrolled == 0 {
                state.release_events();
            }
        }
    }
    Action::Draw
}
