//! What each key and the mouse's wheel do: the same as in the view of one node, where it has the same.

use ratatui::crossterm::event::{
    Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseEventKind,
};

use super::super::columns::NodeColumn;
use super::state::State;
pub(super) use crate::top::live::keys::Action;

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

fn scroll(state: &mut State, by: isize) -> Action {
    state.scroll(by);
    Action::Draw
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
    let in_table = state.open.is_none();
    match key.code {
        KeyCode::Char('q') => return Action::Quit,
        KeyCode::Char('x') => return Action::Export,
        KeyCode::Char('?') | KeyCode::F(1) => state.help = true,
        KeyCode::Char(' ' | 'f') => state.toggle_frozen(),
        KeyCode::Esc | KeyCode::Backspace => state.back(),
        KeyCode::Char('/') if in_table => state.editing = true,
        KeyCode::Enter | KeyCode::Char('l') if in_table => state.open_selected(),
        KeyCode::Char('h') if in_table => state.hide_well = !state.hide_well,
        KeyCode::Char('s' | '>') | KeyCode::Right => next_column(state, 1),
        KeyCode::Char('S' | '<') | KeyCode::Left => next_column(state, NodeColumn::ALL.len() - 1),
        KeyCode::Char('w') => state.sort = NodeColumn::Oddness,
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

fn edit(state: &mut State, code: KeyCode) -> Action {
    match code {
        KeyCode::Enter => state.editing = false,
        KeyCode::Esc => {
            state.editing = false;
            state.filter.clear();
        }
        KeyCode::Backspace => {
            state.filter.pop();
        }
        // Names are ASCII, and so is all that a terminal is shown.
        KeyCode::Char(c) if c.is_ascii_graphic() || c == ' ' => state.filter.push(c),
        KeyCode::Up => return scroll(state, -1),
        KeyCode::Down => return scroll(state, 1),
        _ => return Action::Nothing,
    }
    Action::Draw
}

fn next_column(state: &mut State, by: usize) {
    let all = NodeColumn::ALL;
    let at = all.iter().position(|(c, _)| *c == state.sort).unwrap_or(0);
    state.sort = all[(at + by) % all.len()].0;
}
