//! `cargo xtask picture PANE SVG`: a terminal's screen, as `tmux capture-pane -p -e` writes it, as a
//! picture. The tests write panes where `TRACER_PANES` names a folder.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Size of a cell in pixels, and the font that fits it.
const CELL: (usize, usize) = (8, 17);
const FONT: &str = "font-family=\"DejaVu Sans Mono,Menlo,Consolas,monospace\" font-size=\"13\"";
const BACKGROUND: &str = "#16181d";
const FOREGROUND: &str = "#d7dae0";
/// The 16 colours of a terminal.
const COLOURS: [&str; 16] = [
    "#16181d", "#c4504a", "#6a9955", "#e0b050", "#5a8fd8", "#b070c0", "#50a8b0", "#d7dae0",
    "#6b7078", "#ff7b72", "#8fc97a", "#f2cc70", "#79b8ff", "#d2a8ff", "#76d8e0", "#ffffff",
];

/// Reads a pane, writes a picture.
pub(crate) fn run(pane: &Path, svg: &Path) -> Result<()> {
    let text = fs::read_to_string(pane)
        .with_context(|| format!("failed to read the pane {}", pane.display()))?;
    fs::write(svg, picture(&text))
        .with_context(|| format!("failed to write the picture {}", svg.display()))
}

#[derive(Clone, Debug, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "a terminal has them")]
struct Style {
    colour: Option<usize>,
    bold: bool,
    dim: bool,
    underlined: bool,
    reversed: bool,
}

impl Style {
    /// Takes the parameters of one `CSI … m` over.
    fn change(&mut self, parameters: &str) {
        for parameter in parameters.split(';') {
            match parameter.parse().unwrap_or(0) {
                0 => *self = Self::default(),
                1 => self.bold = true,
                2 => self.dim = true,
                4 => self.underlined = true,
                7 => self.reversed = true,
                22 => (self.bold, self.dim) = (false, false),
                24 => self.underlined = false,
                27 => self.reversed = false,
                n @ 30..=37 => self.colour = Some(n - 30),
                39 => self.colour = None,
                n @ 90..=97 => self.colour = Some(n - 82),
                _ => {}
            }
        }
    }
}

fn picture(pane: &str) -> String {
    let lines: Vec<Vec<(Style, String)>> = runs(pane);
    let length = |line: &Vec<(Style, String)>| line.iter().map(|(_, t)| t.chars().count()).sum();
    let columns: usize = lines.iter().map(length).max().unwrap_or(0);
    let (width, height) = ((columns + 2) * CELL.0, (lines.len() + 1) * CELL.1);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" {FONT}>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{BACKGROUND}\"/>\n"
    );
    for (row, line) in lines.iter().enumerate() {
        let mut column = 1;
        let y = row * CELL.1 + CELL.1 / 2;
        for (style, text) in line {
            let cells = text.chars().count();
            draw(&mut out, style, text, (column * CELL.0, y), cells * CELL.0);
            column += cells;
        }
    }
    out.push_str("</svg>\n");
    out
}

fn draw(out: &mut String, style: &Style, text: &str, (x, y): (usize, usize), width: usize) {
    let colour = style.colour.map_or(FOREGROUND, |n| COLOURS[n]);
    let mut fill = colour;
    if style.reversed {
        fill = BACKGROUND;
        let height = CELL.1;
        writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{colour}\"/>"
        )
        .expect("a String takes every text");
    }
    if text.trim().is_empty() {
        return;
    }
    let weight = if style.bold {
        " font-weight=\"bold\""
    } else {
        ""
    };
    let opacity = if style.dim { " opacity=\"0.55\"" } else { "" };
    let line = if style.underlined {
        " text-decoration=\"underline\""
    } else {
        ""
    };
    let base = y + 13;
    let text = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace(' ', "\u{a0}");
    // The font may be another one: the length is what keeps the columns straight.
    writeln!(
        out,
        "<text x=\"{x}\" y=\"{base}\" textLength=\"{width}\" lengthAdjust=\"spacingAndGlyphs\" \
         fill=\"{fill}\"{weight}{opacity}{line}>{text}</text>"
    )
    .expect("a String takes every text");
}

/// Lines as pieces of one style; other escape sequences than colours are left out.
fn runs(pane: &str) -> Vec<Vec<(Style, String)>> {
    let mut style = Style::default();
    let mut lines = Vec::new();
    for line in pane.lines() {
        let mut line_runs: Vec<(Style, String)> = Vec::new();
        let mut pieces = line.split("\u{1b}[");
        let first = pieces.next().unwrap_or_default();
        push(&mut line_runs, &style, first);
        for piece in pieces {
            let end = piece.find(|c: char| c.is_ascii_alphabetic());
            let Some(end) = end else { continue };
            if piece.as_bytes()[end] == b'm' {
                style.change(&piece[..end]);
            }
            push(&mut line_runs, &style, &piece[end + 1..]);
        }
        lines.push(line_runs);
    }
    lines
}

fn push(line: &mut Vec<(Style, String)>, style: &Style, text: &str) {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    if !text.is_empty() {
        line.push((style.clone(), text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_weight_come_out() {
        let lines = runs("a\u{1b}[1;91mb<\u{1b}[0m c\u{1b}[7md\n\u{1b}[mé");
        let texts: Vec<&str> = lines[0].iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["a", "b<", " c", "d"]);
        assert_eq!(lines[0][1].0.colour, Some(9));
        assert!(lines[0][1].0.bold && !lines[0][2].0.bold && lines[0][3].0.reversed);
        assert_eq!(lines[1], [(Style::default(), "é".to_owned())]);
        let svg = picture("\u{1b}[1;91mb<\u{1b}[0m");
        assert!(
            svg.contains("fill=\"#ff7b72\" font-weight=\"bold\">b&lt;</text>"),
            "{svg}"
        );
    }
}
