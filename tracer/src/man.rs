//! For packages: shell completions and the manual page, both made of the command line itself.

use std::io;

use clap::CommandFactory;
use clap_mangen::Man;

use crate::cli::Cli;

/// A shell's completion script.
pub fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tracer", &mut script);
    script
}

/// The manual page in roff: one page, with a section for each command.
pub fn page() -> io::Result<Vec<u8>> {
    let root = Cli::command();
    let mut page = Vec::new();
    let man = Man::new(root.clone());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    for command in root.get_subcommands().filter(|c| !c.is_hide_set()) {
        let mut section = Vec::new();
        let man = Man::new(command.clone());
        man.render_description_section(&mut section)?;
        man.render_options_section(&mut section)?;
        page.extend(format!(".SH \"TRACER {}\"\n", command.get_name().to_uppercase()).bytes());
        // A command's sections are subsections of its own here.
        let section = String::from_utf8_lossy(&section).replace("\n.SH ", "\n.SS ");
        page.extend(section.bytes());
    }
    let man = Man::new(root);
    man.render_extra_section(&mut page)?;
    man.render_version_section(&mut page)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_variable() {
        for command in Cli::command().get_subcommands() {
            for arg in command.get_arguments() {
                let Some(flag) = arg.get_long().filter(|f| !["help", "version"].contains(f)) else {
                    continue;
                };
                let variable = format!("TRACER_{}", flag.to_uppercase().replace('-', "_"));
                let env = arg.get_env().map(|e| e.to_string_lossy().into_owned());
                assert_eq!(env, Some(variable), "--{flag}");
            }
        }
    }

    #[test]
    fn completions_know_the_flags() {
        for shell in [
            clap_complete::Shell::Bash,
            clap_complete::Shell::Zsh,
            clap_complete::Shell::Fish,
        ] {
            let script = String::from_utf8(completions(shell)).unwrap();
            assert!(script.contains("dns-timeout"), "{shell}");
        }
    }

    #[test]
    fn the_page_tells_of_every_command_but_the_hidden() {
        let page = String::from_utf8(page().unwrap()).unwrap();
        for section in ["AGENT", "TOP", "EVENTS", "DOCTOR"] {
            assert!(page.contains(&format!(".SH \"TRACER {section}\"\n")));
        }
        assert!(page.contains("dns\\-timeout"));
        assert!(!page.contains("COMPLETIONS"));
        assert_eq!(page.matches(".SH OPTIONS").count(), 1);
    }
}
