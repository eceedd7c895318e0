//! The screen as a function of the state: all nodes, or one with its pods.

use ratatui::Frame;
use ratatui::layout::{Constraint, Flex, Layout, Rect};
use ratatui::style::Modifier;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};

use super::super::columns::NodeColumn;
use super::super::nodes::{Node, State as NodeState};
use super::super::pods::NodePods;
use super::super::reason;
use super::super::text::{POD_COLUMNS, pod_cells};
use super::state::State;
use crate::output::printable;
use crate::top::live::draw::theme::{Theme, Tone};
use crate::top::live::draw::{put, rule, shorten};

/// Fewer are no use.
const SMALLEST: (u16, u16) = (40, 10);
/// Lines for the whole reason of the node under the cursor, its title included.
const REASON_LINES: u16 = 4;
/// Width of the mark before a name.
const MARK: usize = 2;

/// Title, width, and from which width of the screen on the column shows, beside the node's name and its
/// reason.
const COLUMNS: [(NodeColumn, &str, usize, u16); 7] = [
    (NodeColumn::Oddness, "ODD", 8, 0),
    (NodeColumn::Dns, "DNS%", 5, 70),
    (NodeColumn::Connect, "CONN%", 5, 80),
    (NodeColumn::Refused, "REFUSED", 7, 100),
    (NodeColumn::Towards, "TOWARDS", 7, 110),
    (NodeColumn::Retransmits, "RESENT", 7, 120),
    (NodeColumn::Table, "TABLE%", 6, 130),
];

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame, state: &State, theme: Theme) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let (width, height) = SMALLEST;
        frame.render_widget(Line::raw(format!("needs {width}x{height}")), area);
        return;
    }
    let theme = Theme {
        old: state.silent.is_some(),
        ..theme
    };
    let head = head(state, theme);
    let width = usize::from(area.width);
    let height: usize = head.iter().map(|line| line.width().div_ceil(width)).sum();
    let head_height = height.min(6) as u16;
    let [top, middle, bottom] = Layout::vertical([
        Constraint::Length(head_height),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(area);
    let head = Paragraph::new(head).wrap(Wrap { trim: false });
    frame.render_widget(head, top);
    if state.open.is_some() {
        one_node(frame, middle, state, theme);
    } else {
        all_nodes(frame, middle, state, theme);
    }
    put(frame, bottom, vec![footer(state, theme, bottom.width)]);
    if state.help {
        help(frame, area, theme);
    }
}

/// Who is asked, of how long; what all nodes have alike; what stands between figures and truth.
fn head<'a>(state: &State, theme: Theme) -> Vec<Line<'a>> {
    let live = if state.frozen { "frozen" } else { "live" };
    let mut lines = vec![Line::from(vec![
        Span::styled(" tracer top ", theme.style(Tone::Title)),
        Span::raw(format!(
            "{}  {live}  over {}",
            printable(&state.base),
            humantime::format_duration(state.range)
        )),
    ])];
    if let Some(cluster) = &state.cluster {
        let alike = reason::alike(cluster, state.range).into_iter();
        lines.extend(alike.map(|text| Line::styled(format!(" {text}"), theme.style(Tone::Bad))));
        let pods = state.pods.iter().flat_map(|pods| &pods.warnings);
        let mut warnings: Vec<&String> = cluster.warnings.iter().chain(pods).collect();
        warnings.dedup();
        lines.extend(warnings.into_iter().map(|warning| {
            let text = format!(" warning: {}", printable(warning));
            Line::styled(text, theme.style(Tone::Warn))
        }));
    }
    if let Some(why) = &state.silent {
        let text = format!(" {}", printable(why));
        lines.push(Line::styled(text, theme.badge(Tone::Bad)));
    }
    lines
}

fn all_nodes(frame: &mut Frame, area: Rect, state: &State, theme: Theme) {
    let rows = state.visible();
    let [table, below] =
        Layout::vertical([Constraint::Min(3), Constraint::Length(REASON_LINES)]).areas(area);
    let columns: Vec<_> = COLUMNS.iter().filter(|c| c.3 <= table.width).collect();
    let longest = rows.iter().map(|node| node.name.len()).max().unwrap_or(0);
    let name = longest.clamp(4, usize::from(table.width) / 4);
    let style = |sorted: bool| {
        let style = theme.style(Tone::Title);
        if sorted {
            style.add_modifier(Modifier::UNDERLINED | Modifier::REVERSED)
        } else {
            style
        }
    };
    let mut head = vec![
        Span::raw(" ".repeat(MARK)),
        Span::styled(
            format!("{:<name$}", "NODE"),
            style(state.sort == NodeColumn::Node),
        ),
    ];
    for (column, title, width, _) in &columns {
        head.push(Span::raw(" "));
        head.push(Span::styled(
            format!("{title:>width$}"),
            style(state.sort == *column),
        ));
    }
    head.push(Span::styled("  REASON", theme.style(Tone::Title)));
    let mut lines = vec![
        rule(title(state, &rows, theme), table.width, theme),
        Line::from(head),
    ];
    if rows.is_empty() {
        let text = if state.filter.is_empty() {
            "  no node is odd (h shows all)"
        } else {
            "  no node matches the filter (/ then Esc clears it)"
        };
        lines.push(Line::styled(text, theme.style(Tone::Faint)));
    }
    let cursor = state.cursor(&rows);
    let height = usize::from(table.height).saturating_sub(lines.len());
    let first = cursor
        .saturating_sub(height / 2)
        .min(rows.len().saturating_sub(height));
    for (i, node) in rows.iter().enumerate().skip(first).take(height) {
        let mut spans = named(node, name, theme);
        for (column, _, width, _) in &columns {
            let tone = tone(node, *column);
            let text = format!(" {:>width$}", column.cell(node));
            spans.push(Span::styled(text, theme.style(tone)));
        }
        let used: usize = spans.iter().map(Span::width).sum();
        let room = usize::from(table.width).saturating_sub(used + 2);
        let why = reason::of(node, state.range);
        let why: String = why.chars().take(room).collect();
        spans.push(Span::raw(format!("  {why:<room$}")));
        let mut line = Line::from(spans);
        if i == cursor {
            line.style = Theme::cursor(line.style);
        }
        lines.push(line);
    }
    put(frame, table, lines);
    if let Some(node) = rows.get(cursor) {
        let title = vec![Span::styled(
            printable(&node.name).into_owned(),
            theme.style(Tone::Title),
        )];
        let mut lines = vec![rule(title, below.width, theme)];
        lines.push(Line::raw(format!(" {}", reason::of(node, state.range))));
        let text = Paragraph::new(lines).wrap(Wrap { trim: false });
        frame.render_widget(text, below);
    }
}

/// A mark and the name.
fn named<'a>(node: &Node, width: usize, theme: Theme) -> Vec<Span<'a>> {
    let (mark, tone) = match node.state {
        NodeState::Up if node.is_odd() => (theme.sign("● ", "! "), Tone::Bad),
        NodeState::Up => ("  ", Tone::Plain),
        NodeState::Down => (theme.sign("✖ ", "x "), Tone::Bad),
        NodeState::NoTarget | NodeState::NoAgent => ("? ", Tone::Warn),
    };
    let name = shorten(&printable(&node.name), width, theme);
    vec![
        Span::styled(mark, theme.style(tone)),
        Span::styled(format!("{name:<width$}"), theme.style(tone)),
    ]
}

fn tone(node: &Node, column: NodeColumn) -> Tone {
    use super::super::nodes::Signal;
    let signal = match column {
        NodeColumn::Dns => Signal::Dns,
        NodeColumn::Connect => Signal::Connect,
        NodeColumn::Refused => Signal::Neighbour,
        NodeColumn::Retransmits => Signal::Retransmit,
        NodeColumn::Towards => Signal::Towards,
        NodeColumn::Oddness if node.is_odd() => return Tone::Bad,
        NodeColumn::Table if node.table_used.is_some_and(|used| used >= 0.9) => return Tone::Warn,
        NodeColumn::Oddness | NodeColumn::Table | NodeColumn::Node => return Tone::Plain,
    };
    if node.findings.iter().any(|f| f.signal == signal) {
        Tone::Bad
    } else {
        Tone::Plain
    }
}

fn title<'a>(state: &State, rows: &[&Node], theme: Theme) -> Vec<Span<'a>> {
    let all = state.cluster.as_ref().map_or(&[][..], |c| &c.nodes);
    let odd = all.iter().filter(|node| node.is_odd()).count();
    let tone = if odd > 0 { Tone::Bad } else { Tone::Good };
    let nodes = if rows.len() == all.len() {
        format!("{} nodes", all.len())
    } else {
        format!("{} of {} nodes", rows.len(), all.len())
    };
    let reverse = if state.reverse { " reversed" } else { "" };
    let order = match state.sort {
        NodeColumn::Oddness => format!(", the oddest first{reverse}"),
        column => format!(", by {}{reverse}", column.name()),
    };
    let mut spans = vec![
        Span::styled(nodes, theme.style(Tone::Title)),
        Span::styled(format!(", {odd} odd"), theme.style(tone)),
        Span::raw(order),
    ];
    if !state.filter.is_empty() {
        let filter = format!(", filter {:?}", state.filter);
        spans.push(Span::styled(filter, theme.style(Tone::Warn)));
    }
    if state.hide_well {
        let text = ", the others hidden";
        spans.push(Span::styled(text, theme.style(Tone::Warn)));
    }
    spans
}

fn one_node(frame: &mut Frame, area: Rect, state: &State, theme: Theme) {
    let Some(name) = &state.open else {
        return;
    };
    let title = vec![
        Span::raw("node "),
        Span::styled(printable(name).into_owned(), theme.style(Tone::Title)),
    ];
    let mut lines = vec![rule(title, area.width, theme)];
    if let Some(node) = state.opened_node() {
        let why = format!(" {}", reason::of(node, state.range));
        // Long reasons take more lines; they are not scrolled away in pieces.
        let width = usize::from(area.width).max(1);
        let characters: Vec<char> = why.chars().collect();
        lines.extend(
            characters
                .chunks(width)
                .map(|part| Line::raw(part.iter().collect::<String>())),
        );
        let cells = NodeColumn::ALL[2..].iter().map(|(column, name)| {
            let text = format!(" {name} {} ", column.cell(node));
            Span::styled(text, theme.style(tone(node, *column)))
        });
        lines.push(Line::from(cells.collect::<Vec<_>>()));
    } else {
        lines.push(Line::styled(
            " this node is not known (any more)",
            theme.style(Tone::Warn),
        ));
    }
    match &state.pods {
        None => lines.push(Line::styled(
            " asking for its pods",
            theme.style(Tone::Faint),
        )),
        Some(pods) => lines.extend(pod_lines(pods, area.width, theme)),
    }
    let last = lines.len().saturating_sub(usize::from(area.height));
    let lines = lines.split_off(state.scrolled.min(last));
    put(frame, area, lines);
}

/// Of [`POD_COLUMNS`], what the screen has room for: heads, and from which width on.
const POD_HEADS: [(usize, &str, u16); 11] = [
    (2, "LOOKUPS", 0),
    (3, "FAIL%", 0),
    (4, "MAIN CAUSE", 0),
    (5, "CONNECTS", 90),
    (6, "FAIL%", 90),
    (7, "RESULT", 100),
    (8, "REFUSED", 0),
    (9, "NEIGH", 120),
    (10, "RESENT", 130),
    (11, "DROPS", 140),
    (12, "REASON", 160),
];

fn pod_lines<'a>(pods: &NodePods, width: u16, theme: Theme) -> Vec<Line<'a>> {
    let failing = pods.failing.len();
    let tone = if failing > 0 { Tone::Bad } else { Tone::Good };
    let title = vec![
        Span::styled(format!("{failing} pods fail"), theme.style(tone)),
        Span::raw(format!(", {} are well", pods.well)),
    ];
    let mut lines = vec![rule(title, width, theme)];
    let heads: Vec<_> = POD_HEADS.iter().filter(|h| h.2 <= width).collect();
    let taken: usize = heads.iter().map(|(i, _, _)| POD_COLUMNS[*i].1 + 1).sum();
    let name = usize::from(width).saturating_sub(MARK + taken).min(72);
    let is_left = |i: usize| matches!(i, 4 | 7 | 12);
    let aligned = |i: usize, text: &str| {
        let width = POD_COLUMNS[i].1;
        let text = shorten(text, width, theme);
        if is_left(i) {
            format!(" {text:<width$}")
        } else {
            format!(" {text:>width$}")
        }
    };
    if failing > 0 {
        let mut head = format!("  {:<name$}", "POD");
        for (i, title, _) in &heads {
            head += &aligned(*i, title);
        }
        lines.push(Line::styled(head, theme.style(Tone::Title)));
    }
    for pod in &pods.failing {
        let cells = pod_cells(pod);
        let full = shorten(&format!("{}/{}", cells[0], cells[1]), name, theme);
        let mut spans = vec![
            Span::styled(theme.sign("● ", "! "), theme.style(Tone::Bad)),
            Span::styled(format!("{full:<name$}"), theme.style(Tone::Bad)),
        ];
        spans.extend(
            heads
                .iter()
                .map(|(i, _, _)| Span::raw(aligned(*i, &cells[*i]))),
        );
        lines.push(Line::from(spans));
    }
    if !pods.dead.is_empty() {
        let title = vec![Span::styled("dead destinations", theme.style(Tone::Title))];
        lines.push(rule(title, width, theme));
    }
    for dead in &pods.dead {
        let owner = if dead.last_owner.is_empty() {
            "nobody known had it".to_owned()
        } else {
            format!("last {}", printable(&dead.last_owner))
        };
        lines.push(Line::raw(format!(
            "  {:<22} {:>6.0} attempts, mostly by {}; {owner}",
            printable(&dead.destination),
            dead.attempts,
            printable(&dead.mostly_by)
        )));
    }
    lines
}

/// Keys that matter here, as many as there is room for, or what has just happened.
fn footer<'a>(state: &State, theme: Theme, width: u16) -> Line<'a> {
    if state.editing {
        return Line::from(vec![
            Span::styled(" filter: ", theme.style(Tone::Title)),
            Span::raw(state.filter.clone()),
            Span::styled("  Enter keeps it, Esc clears it", theme.style(Tone::Faint)),
        ]);
    }
    if let Some(message) = &state.message {
        return Line::styled(format!(" {message}"), theme.style(Tone::Title));
    }
    let freeze = if state.frozen { "go on" } else { "freeze" };
    let keys: Vec<(&str, &str)> = if state.open.is_some() {
        vec![
            ("q", "quit"),
            ("?", "help"),
            ("Esc", "all nodes"),
            ("Down", "more"),
            ("Space", freeze),
            ("x", "export"),
        ]
    } else {
        vec![
            ("q", "quit"),
            ("?", "help"),
            ("Enter", "its pods"),
            ("/", "filter"),
            ("s", "sort"),
            (
                "h",
                if state.hide_well {
                    "show all"
                } else {
                    "only odd ones"
                },
            ),
            ("Space", freeze),
            ("r", "reverse"),
            ("x", "export"),
        ]
    };
    let mut spans = Vec::new();
    let mut used = 0;
    for (key, does) in keys {
        used += key.len() + does.len() + 3;
        if used > usize::from(width) {
            break;
        }
        spans.push(Span::styled(format!(" {key}"), theme.style(Tone::Title)));
        spans.push(Span::raw(format!(" {does} ")));
    }
    Line::from(spans)
}

const KEYS: [(&str, &str); 11] = [
    ("up down, j k", "move; PgUp PgDn, g G, mouse wheel too"),
    ("Enter, l", "the pods of the node under the cursor"),
    ("Esc", "back; clears the filter"),
    ("/", "filter nodes by typing: name or reason"),
    ("s S, < >, arrows", "sort by the next or previous column"),
    ("w", "the oddest first"),
    ("r", "reverse the order"),
    ("h", "only odd nodes, or all"),
    ("Space, f", "freeze the screen (to copy), or go on"),
    ("x", "export what is seen to a JSON file"),
    ("q, Ctrl-C", "quit; Ctrl-Z suspends"),
];

fn help(frame: &mut Frame, area: Rect, theme: Theme) {
    let width = 64.min(area.width);
    let height = (KEYS.len() as u16 + 2).min(area.height);
    let [row] = Layout::vertical([Constraint::Length(height)])
        .flex(Flex::Center)
        .areas(area);
    let [place] = Layout::horizontal([Constraint::Length(width)])
        .flex(Flex::Center)
        .areas(row);
    let line = |(key, does): &(&'static str, &'static str)| {
        Line::from(vec![
            Span::styled(format!(" {key:<17}"), theme.style(Tone::Title)),
            Span::raw(*does),
        ])
    };
    let lines: Vec<Line> = KEYS.iter().map(line).collect();
    let mut block = Block::bordered().title(" keys: any key closes this ");
    if !theme.unicode {
        block = block.border_set(crate::top::live::draw::help::ASCII);
    }
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(block), place);
}
