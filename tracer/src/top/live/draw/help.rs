//! The keys, explained on top of everything.

use ratatui::Frame;
use ratatui::layout::{Constraint, Flex, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

use super::theme::{Theme, Tone};

const KEYS: [(&str, &str); 16] = [
    ("up down, j k", "move; PgUp PgDn, g G, mouse wheel too"),
    ("Enter, l", "the pod under the cursor"),
    ("Esc", "back; clears the filter"),
    ("e", "events"),
    ("/", "filter pods by typing, or events in their view"),
    ("s S, < >, arrows", "sort by the next or previous column"),
    ("w", "worst first"),
    ("r", "reverse the order"),
    ("h", "hide healthy pods, or show them"),
    ("Space, f", "freeze the screen (to copy), or go on"),
    ("x", "export what is seen to a JSON file"),
    ("Ctrl-L", "draw anew"),
    ("Ctrl-Z", "suspend; fg comes back"),
    ("q, Ctrl-C", "quit"),
    ("* !", "failing for less than 60 s, failing"),
    (
        "| in a bar",
        "gc_thresh1, gc_thresh2; its end is gc_thresh3",
    ),
];

/// Draws the box in the middle.
pub(super) fn draw(frame: &mut Frame, area: Rect, theme: Theme) {
    let width = 68.min(area.width);
    let height = (KEYS.len() as u16 + 2).min(area.height);
    let [row] = Layout::vertical([Constraint::Length(height)])
        .flex(Flex::Center)
        .areas(area);
    let [place] = Layout::horizontal([Constraint::Length(width)])
        .flex(Flex::Center)
        .areas(row);
    let mark = |text: &'static str| match text {
        "* !" => theme.sign("★ ●", "* !"),
        "| in a bar" => theme.sign("│ in a bar", "| in a bar"),
        other => other,
    };
    let lines: Vec<Line> = KEYS
        .iter()
        .map(|(key, does)| {
            Line::from(vec![
                Span::styled(format!(" {:<17}", mark(key)), theme.style(Tone::Title)),
                Span::raw(*does),
            ])
        })
        .collect();
    let mut block = Block::bordered().title(" keys: any key closes this ");
    if !theme.unicode {
        block = block.border_set(ASCII);
    }
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(block), place);
}

pub(in crate::top) const ASCII: ratatui::symbols::border::Set = ratatui::symbols::border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};
