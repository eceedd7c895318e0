//! A real terminal: a tmux server of its own, with a shell in it.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::process::check;
use crate::wait::{ensure, eventually};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A terminal with a shell; all that runs in it ends on drop.
#[derive(Debug)]
pub struct Terminal {
    socket: String,
}

impl Terminal {
    /// Of so many columns and lines, the shell in this folder, with UTF-8.
    pub fn open(width: u16, height: u16, folder: &Path) -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let terminal = Self {
            socket: format!("tt{}-{number}", std::process::id()),
        };
        let size = [width.to_string(), height.to_string()];
        let mut tmux = terminal.tmux(&["-f", "/dev/null", "new-session", "-d"]);
        tmux.args(["-x", &size[0], "-y", &size[1], "-c"])
            .arg(folder)
            // The shell's prompt is waited for; job control is wanted.
            .arg("PS1='ready> ' exec bash --norc --noprofile -i")
            .env("LC_ALL", "C.UTF-8")
            .env_remove("TMUX")
            .env_remove("NO_COLOR");
        check(&mut tmux);
        terminal.wait(|pane| pane.contains("ready>"), "a prompt");
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("tmux");
        command.args(["-u", "-L", &self.socket]).args(arguments);
        command
    }

    fn ask(&self, arguments: &[&str]) -> String {
        let output = self.tmux(arguments).output().expect("tmux runs");
        assert!(output.status.success(), "tmux {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Presses keys, as tmux names them (`Enter`, `C-z`, `a`).
    pub fn press(&self, keys: &[&str]) {
        self.ask(&[&["send-keys"], keys].concat());
    }

    /// Types a command and Enter.
    pub fn type_line(&self, line: &str) {
        self.ask(&["send-keys", "-l", line]);
        self.press(&["Enter"]);
    }

    /// What is on the screen, without colours.
    pub fn pane(&self) -> String {
        self.ask(&["capture-pane", "-p"])
    }

    /// The same with its escape sequences.
    pub fn painted(&self) -> String {
        self.ask(&["capture-pane", "-p", "-e"])
    }

    /// What programs have called the terminal.
    pub fn title(&self) -> String {
        self.ask(&["display-message", "-p", "#{pane_title}"])
    }

    /// Another size.
    pub fn resize(&self, width: u16, height: u16) {
        let size = [width.to_string(), height.to_string()];
        self.ask(&["resize-window", "-x", &size[0], "-y", &size[1]]);
    }

    /// Is a full-screen program's screen up?
    pub fn is_full_screen(&self) -> bool {
        self.flag("alternate_on")
    }

    /// Does a program want the mouse?
    pub fn wants_mouse(&self) -> bool {
        self.flag("mouse_any_flag")
    }

    fn flag(&self, name: &str) -> bool {
        let format = format!("#{{{name}}}");
        self.ask(&["display-message", "-p", &format]).trim() == "1"
    }

    /// Waits until the screen is so, at most 15 s, and gives it.
    pub fn wait(&self, is_so: impl Fn(&str) -> bool, what: &str) -> String {
        eventually(Duration::from_secs(15), || {
            let pane = self.pane();
            ensure(is_so(&pane), || format!("no {what} on the screen:\n{pane}")).map(|()| pane)
        })
    }

    /// Waits until these words are all on it.
    pub fn wait_for(&self, words: &[&str]) -> String {
        let has_all = |pane: &str| words.iter().all(|word| pane.contains(word));
        self.wait(has_all, &format!("{words:?}"))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.tmux(&["kill-server"]).output();
    }
}
