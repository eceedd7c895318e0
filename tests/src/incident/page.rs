//! The pages of `docs/incidents/`, and how what is measured gets into them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::Timeline;

/// The page of an incident.
fn path(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/incidents");
    root.join(name).with_extension("md")
}

/// [`renew_part`] of a page that has one timeline.
pub fn renew(name: &str, timeline: &Timeline, commands: &[&str]) {
    renew_part(name, "timeline", timeline, commands);
}

/// With `UPDATE=1` writes the timeline and what tracer printed into the incident's page, between
/// `<!-- TITLE -->` (the timeline's) or `<!-- COMMAND -->` (such as `<!-- tracer why -->`) and the next
/// `<!-- end -->`. Else, and after that too, panics if the page lacks a place that it should have.
///
/// Names of the lab's namespaces hold process ids; pages get what was printed, word for word.
pub fn renew_part(name: &str, title: &str, timeline: &Timeline, commands: &[&str]) {
    let path = path(name);
    let mut page =
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    page = replaced(&page, title, &timeline.markdown());
    for command in commands {
        let output = timeline
            .output(command)
            .unwrap_or_else(|| panic!("nobody asked `{command}`"));
        let block = format!("```text\n$ {command}\n{}\n```\n", output.trim_end());
        page = replaced(&page, command, &block);
    }
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, page).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    }
}

/// The page with another text in one of its places.
fn replaced(page: &str, place: &str, text: &str) -> String {
    let begin = format!("<!-- {place} -->\n");
    let (before, rest) = page
        .split_once(&begin)
        .unwrap_or_else(|| panic!("the page has no place {begin:?}"));
    let (_, after) = rest
        .split_once("<!-- end -->")
        .unwrap_or_else(|| panic!("the place {begin:?} has no end"));
    format!("{before}{begin}{text}<!-- end -->{after}")
}

#[cfg(test)]
mod tests {
    use super::replaced;

    #[test]
    fn a_place_gets_another_text_and_the_rest_stays() {
        let page = "a\n<!-- x -->\nold\n<!-- end -->\nb\n<!-- y -->\n<!-- end -->\n";
        let new = "a\n<!-- x -->\nnew\n<!-- end -->\nb\n<!-- y -->\n<!-- end -->\n";
        assert_eq!(replaced(page, "x", "new\n"), new);
    }

    #[test]
    #[should_panic(expected = "no place")]
    fn a_place_that_is_not_there_is_a_failure() {
        replaced("a\n", "x", "new\n");
    }
}
