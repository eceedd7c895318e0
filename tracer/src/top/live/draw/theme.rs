//! Colours, bars and sparklines. Every colour has a word, a sign or weight beside it, so that
//! nothing is told by colour alone; blue, yellow and red-orange stay apart for most of the
//! colour-blind, and green is not used.

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Span;

/// How things look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::top) struct Theme {
    /// Colours, or weight only.
    pub color: bool,
    /// Blocks, or ASCII.
    pub unicode: bool,
    /// All is old: grey.
    pub old: bool,
}

/// How bad a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::top) enum Tone {
    Plain,
    Faint,
    Title,
    Good,
    Warn,
    Bad,
}

impl Theme {
    pub(in crate::top) fn style(self, tone: Tone) -> Style {
        let style = Style::new();
        if self.old {
            return style.add_modifier(Modifier::DIM);
        }
        let fg = |color| if self.color { style.fg(color) } else { style };
        match tone {
            Tone::Plain => style,
            Tone::Faint => style.add_modifier(Modifier::DIM),
            Tone::Title => fg(Color::LightCyan).add_modifier(Modifier::BOLD),
            Tone::Good => fg(Color::LightBlue),
            Tone::Warn => fg(Color::Yellow).add_modifier(Modifier::BOLD),
            Tone::Bad => fg(Color::LightRed).add_modifier(Modifier::BOLD),
        }
    }

    /// A word that must be seen.
    pub(in crate::top) fn badge(self, tone: Tone) -> Style {
        self.style(tone).add_modifier(Modifier::REVERSED)
    }

    /// The row under the cursor.
    pub(in crate::top) fn cursor(style: Style) -> Style {
        style.add_modifier(Modifier::REVERSED)
    }

    pub(in crate::top) fn sign(self, unicode: &'static str, ascii: &'static str) -> &'static str {
        if self.unicode { unicode } else { ascii }
    }

    /// A bar of `width` cells, `filled` of the whole (0 to 1), with ticks at `marks` (0 to 1) where it
    /// is empty.
    pub(in crate::top) fn bar(
        self,
        width: usize,
        filled: f64,
        marks: &[f64],
        tone: Tone,
    ) -> Vec<Span<'static>> {
        let cell = |part: f64| (part.clamp(0.0, 1.0) * width as f64).round() as usize;
        let mut full = cell(filled);
        if filled > 0.0 && full == 0 && width > 0 {
            full = 1; // a little is not nothing
        }
        let mut rest = String::new();
        for at in full..width {
            let marked = marks.iter().any(|mark| cell(*mark).min(width - 1) == at);
            rest += if marked {
                self.sign("│", "|")
            } else {
                self.sign("░", ".")
            };
        }
        vec![
            Span::styled(self.sign("█", "#").repeat(full), self.style(tone)),
            Span::styled(rest, self.style(Tone::Faint)),
        ]
    }

    /// The last `width` values as one cell each, the newest on the right; the
    /// highest, or `full` where that is more, fills a cell.
    pub(in crate::top) fn spark(self, values: &[f64], width: usize, full: f64) -> String {
        const UNICODE: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
        const ASCII: [&str; 9] = [" ", ".", ".", ":", ":", "-", "=", "+", "#"];
        let levels = if self.unicode { UNICODE } else { ASCII };
        let shown = &values[values.len().saturating_sub(width)..];
        let highest = shown.iter().copied().fold(full, f64::max);
        let mut out = " ".repeat(width - shown.len());
        for value in shown {
            let level = if highest > 0.0 && *value > 0.0 {
                ((value / highest * 8.0).ceil() as usize).clamp(1, 8)
            } else {
                0
            };
            // Nothing is a line, so that one sees where time is.
            out += if level == 0 {
                self.sign("·", " ")
            } else {
                levels[level]
            };
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEME: Theme = Theme {
        color: false,
        unicode: true,
        old: false,
    };

    fn text(spans: &[Span]) -> String {
        spans.iter().map(|s| s.content.as_ref()).collect()
    }

    #[test]
    fn bars_show_a_little_and_the_marks() {
        let bar = |filled| text(&THEME.bar(8, filled, &[0.125, 0.5], Tone::Bad));
        assert_eq!(bar(0.0), "░│░░│░░░");
        assert_eq!(bar(0.01), "█│░░│░░░");
        assert_eq!(bar(0.5), "████│░░░");
        assert_eq!(bar(1.0), "████████");
        assert_eq!(bar(7.0), "████████");
        assert_eq!(text(&THEME.bar(0, 0.5, &[0.5], Tone::Bad)), "");
    }

    #[test]
    fn sparklines_are_scaled_and_as_wide_as_asked() {
        assert_eq!(THEME.spark(&[0.0, 1.0, 4.0, 8.0], 6, 0.0), "  ·▁▄█");
        assert_eq!(THEME.spark(&[1.0, 2.0, 3.0], 2, 0.0), "▆█");
        assert_eq!(THEME.spark(&[], 3, 8.0), "   ");
        let ascii = Theme {
            unicode: false,
            ..THEME
        };
        assert!(ascii.spark(&[0.0, 1.0, 9.0], 3, 99.0).is_ascii());
    }

    #[test]
    fn without_colours_there_is_weight() {
        for tone in [Tone::Warn, Tone::Bad, Tone::Title] {
            let style = THEME.style(tone);
            assert_eq!(style.fg, None);
            assert!(style.add_modifier.contains(Modifier::BOLD));
        }
        let colourful = Theme {
            color: true,
            ..THEME
        };
        assert_eq!(colourful.style(Tone::Bad).fg, Some(Color::LightRed));
        let old = Theme {
            old: true,
            ..colourful
        };
        assert_eq!(old.style(Tone::Bad).fg, None);
    }
}
