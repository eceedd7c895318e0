//! The script that runs in a guest as its first process.

use std::{
    env,
    fmt::Write as _,
    path::{self, Path},
};

use anyhow::{Context as _, Result};

use super::{
    board::Board,
    results::{EXIT, MARK, STATUS, UP},
    suite::Binary,
};
use crate::{arch::Arch, sh};

/// Runs the picked tests one after the other, as `cargo test` would on the host.
pub fn of_tests(arch: Arch, suite: &[Binary], tested: &Path) -> Result<String> {
    let variables = [
        ("TERM", "dumb".to_owned()),
        ("TRACER_BIN", text(&path::absolute(tested)?)?),
    ];
    // The host's, seen through the shared files.
    let mut body = "rm -f /tmp/tracer-verifier-*.log\n".to_owned();
    for binary in suite {
        writeln!(body, "echo '{MARK}file {}'", binary.file)?;
        write!(
            body,
            "{} --test-threads=1 --color=never --exact",
            quoted(&text(&binary.path)?)
        )?;
        for test in &binary.tests {
            write!(body, " {}", quoted(test))?;
        }
        // On a line of its own, also where the binary died in the middle of one.
        writeln!(body, "\nprintf '\\n{MARK}{EXIT}%s\\n' $?")?;
        body += REFUSALS;
    }
    writeln!(
        body,
        "echo \"{MARK}ends after $(cut -d' ' -f1 /proc/uptime) s\"\necho '{MARK}end'"
    )?;
    script(arch, &variables, &body)
}

/// Runs one program, on a terminal of this size (lines and columns) where there is one. How it ended goes to
/// the console.
pub fn of_program(
    arch: Arch,
    words: &[&str],
    variables: &[(&str, String)],
    size: Option<(u16, u16)>,
) -> Result<String> {
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    let words = words.join(" ");
    let mut body = String::new();
    if let Some((lines, columns)) = size {
        let line = Board::of(arch)?.tests;
        writeln!(body, "stty -F {line} sane rows {lines} cols {columns}")?;
        // In a session that the line belongs to: Ctrl-C is a signal then.
        writeln!(body, "setsid --ctty --wait {words} <>{line} >&0 2>&1")?;
    } else {
        writeln!(body, "{words}")?;
    }
    writeln!(body, "echo \"{STATUS}$?\" >/dev/console")?;
    script(arch, variables, &body)
}

/// The script that does this, with what all of them need around it.
fn script(arch: Arch, variables: &[(&str, String)], body: &str) -> Result<String> {
    let line = Board::of(arch)?.tests;
    let own = env::current_exe()?;
    let home = env::var("HOME").context("HOME is not set")?;
    let all = [
        ("HOME", home),
        ("PATH", path(arch)),
        ("LANG", "C.UTF-8".to_owned()),
        ("TRACER_XTASK", text(&own)?),
        ("TRACER_PATIENCE", super::patience()?.to_string()),
    ];
    let mut script = "#!/bin/bash\n# Made by `cargo xtask vm`.\n".to_owned();
    // The second serial line; the first is the kernel's.
    writeln!(
        script,
        "exec </dev/null >{line} 2>&1\nstty -F {line} raw -echo"
    )?;
    writeln!(script, "echo '{UP}'")?;
    for (name, value) in all.iter().chain(variables) {
        writeln!(script, "export {name}={}", quoted(value))?;
    }
    writeln!(script, "cd {}", quoted(&text(&sh::root().join("tests"))?))?;
    script += body;
    // What the serial lines still hold is sent before the machine is gone.
    writeln!(
        script,
        "stty -F {line} -raw\nstty -F /dev/console -raw\nsync"
    )?;
    script += "echo o >/proc/sysrq-trigger\nsleep 60\n";
    Ok(script)
}

/// Where the guest's programs are.
fn path(arch: Arch) -> String {
    const SYSTEM: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
    if arch == Arch::HOST {
        // A user's PATH may lack the administrator's folders.
        let own = env::var("PATH").unwrap_or_default();
        format!("{own}:/usr/local/sbin:/usr/local/bin:{SYSTEM}")
    } else {
        // The other folders are the host's alone.
        SYSTEM.to_owned()
    }
}

/// What the verifier said of a program that it refused ends with the reason.
const REFUSALS: &str = r#"for log in /tmp/tracer-verifier-*.log; do
    [ -e "$log" ] || continue
    echo "tracer-vm: the verifier's last words on $log"
    tail -n 40 "$log"
    rm "$log"
done
"#;

fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .with_context(|| format!("{} is not text", path.display()))
}

/// For the shell, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{path::PathBuf, process::Command};

    #[test]
    fn the_script_is_one_that_the_shell_reads() {
        let suite = [Binary {
            file: "neigh".to_owned(),
            path: PathBuf::from("/it's here/neigh-1"),
            tests: vec!["a".to_owned(), "b::c".to_owned()],
        }];
        let script = of_tests(Arch::HOST, &suite, Path::new("/built/tracer")).unwrap();
        assert!(
            script.contains("export TRACER_BIN='/built/tracer'\n"),
            "{script}"
        );
        assert!(
            script.contains(
                r"'/it'\''s here/neigh-1' --test-threads=1 --color=never --exact 'a' 'b::c'
printf '\ntracer-vm: exit %s\n' $?
"
            ),
            "{script}"
        );
        assert_is_read(&script);
    }

    #[test]
    fn a_program_has_a_terminal_where_the_user_has_one() {
        let variables = [("TERM", "xterm".to_owned())];
        let words = ["/it's here/demo", "overflow"];
        let on_terminal = of_program(Arch::HOST, &words, &variables, Some((24, 80))).unwrap();
        assert!(
            on_terminal.contains(
                r"sane rows 24 cols 80
setsid --ctty --wait '/it'\''s here/demo' 'overflow' <>/dev/ttyS1"
            ),
            "{on_terminal}"
        );
        assert_is_read(&on_terminal);
        let piped = of_program(Arch::HOST, &words, &variables, None).unwrap();
        assert!(
            piped.contains("tests'\n'/it'\\''s here/demo' 'overflow'\n"),
            "{piped}"
        );
        assert_is_read(&piped);
    }

    fn assert_is_read(script: &str) {
        let read = Command::new("bash").args(["-n", "-c", script]).output();
        assert!(read.unwrap().status.success());
    }
}
