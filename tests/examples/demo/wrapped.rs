//! Lines that are broken between words, for the width of the terminal.

use std::io::stdout;

use rustix::termios::tcgetwinsize;

/// Lines and columns of the terminal; those of a serial line, where it does not say.
pub fn size() -> (usize, usize) {
    let size = tcgetwinsize(stdout()).ok();
    let known = size.filter(|size| size.ws_row > 0 && size.ws_col > 0);
    known.map_or((24, 80), |size| (size.ws_row.into(), size.ws_col.into()))
}

/// The text in lines of so many columns; what is broken goes on behind this margin.
pub fn wrapped(text: &str, columns: usize, margin: usize) -> String {
    let lines = text.lines().map(|line| wrapped_line(line, columns, margin));
    lines.collect::<Vec<_>>().join("\n")
}

fn wrapped_line(line: &str, columns: usize, margin: usize) -> String {
    let mut broken = String::new();
    let mut at = 0;
    // A word with the spaces before it.
    let mut rest = line;
    while !rest.is_empty() {
        let spaces = rest.len() - rest.trim_start().len();
        let end = rest[spaces..].find(' ').map_or(rest.len(), |n| spaces + n);
        let (word, after) = rest.split_at(end);
        if at > margin && at + shown(word) > columns {
            broken.push('\n');
            broken.push_str(&" ".repeat(margin));
            broken.push_str(&word[spaces..]);
            at = margin + shown(&word[spaces..]);
        } else {
            broken.push_str(word);
            at += shown(word);
        }
        rest = after;
    }
    broken
}

/// Columns that it takes: bold is none.
fn shown(word: &str) -> usize {
    let plain = word.replace("\x1b[1m", "").replace("\x1b[0m", "");
    plain.chars().count()
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn lines_are_broken_between_words_and_go_on_behind_the_margin() {
        let text = "   2.2 s  \x1b[1monset:\x1b[0m pods are replaced\n\n  as it is";
        let expected = "   2.2 s  \x1b[1monset:\x1b[0m pods\n          are replaced\n\n  as it is";
        assert_eq!(wrapped(text, 22, 10), expected);
    }

    #[test]
    fn a_word_that_is_too_long_stands_alone() {
        assert_eq!(wrapped("a bbbbbbbb c", 4, 0), "a\nbbbbbbbb\nc");
    }
}
