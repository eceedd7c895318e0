//! For a terminal: `tracer top` above, captions below, by tmux.

use std::fs::{File, OpenOptions};
use std::io::{Write as _, stdout};
use std::mem;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tests::incident::{Audience, Moment, Printed, Stage};
use tests::process::{check, tracer_path};
use tests::wait::check_interrupt;

use crate::wrapped::{size, wrapped};

/// A caption is to be read.
const READ: Duration = Duration::from_secs(2);
/// The verdict too.
const READ_VERDICT: Duration = Duration::from_secs(8);
/// Of the terminal's lines, those below `top`, in hundredths.
const BELOW: usize = 40;

/// The terminal.
#[derive(Debug)]
pub struct Screen {
    interrupt: Arc<AtomicBool>,
    begun: Option<Instant>,
    /// Before there was anything to be shown above.
    said: Vec<String>,
    shown: Option<Shown>,
}

#[derive(Debug)]
struct Shown {
    captions: File,
    /// Ends when the user has left.
    attached: Option<JoinHandle<()>>,
    over: Arc<AtomicBool>,
    /// Of the captions and tmux's socket.
    folder: TempDir,
}

impl Screen {
    /// Nothing to be seen yet; whoever leaves it wants all to end.
    pub fn new(interrupt: Arc<AtomicBool>) -> Self {
        Self {
            interrupt,
            begun: None,
            said: Vec::new(),
            shown: None,
        }
    }

    fn say(&mut self, text: String) {
        if let Some(shown) = &mut self.shown {
            // A caption that cannot be written is not worth the play.
            let _ = writeln!(shown.captions, "{text}");
        } else {
            println!("{text}");
            self.said.push(text);
        }
    }
}

impl Audience for Screen {
    fn top(&mut self, arguments: &[&str]) {
        self.shown = Some(Shown::open(arguments, &self.interrupt));
        for text in mem::take(&mut self.said) {
            self.say(text);
        }
    }

    fn caption(&mut self, moment: &Moment) {
        let begun = *self.begun.get_or_insert(moment.at);
        let seconds = moment.at.saturating_duration_since(begun).as_secs_f64();
        let label = moment.stage.label();
        // Bold, where it is a stage.
        let label = if label.is_empty() {
            String::new()
        } else {
            format!("\x1b[1m{label}:\x1b[0m ")
        };
        let time = format!("{seconds:>6.1} s  ");
        let text = format!("{time}{label}{}", moment.text);
        self.say(wrapped(&text, size().1, time.len()));
        if self.shown.is_some() && !matches!(moment.stage, Stage::Failure | Stage::Named) {
            wait(READ);
        }
    }

    fn printed(&mut self, printed: &Printed) {
        // `top` is on the screen already.
        if printed.command.starts_with("tracer top") {
            return;
        }
        // It was broken for another width.
        let said = printed.output.replace("\n    ", " ");
        let (lines, columns) = size();
        let mut output = wrapped(&said, columns, 4);
        if output.lines().count() + 3 > lines * BELOW / 100 {
            output = wrapped(&verdict(&said), columns, 4);
        }
        self.say(format!("\n\x1b[1m$ {}\x1b[0m\n{output}", printed.command));
        wait(READ_VERDICT);
    }

    fn end(&mut self) {
        self.say(
            "\nThat was it. \x1b[1mq\x1b[0m leaves; then all that the demo made is removed.".into(),
        );
        if let Some(shown) = &mut self.shown {
            shown.over.store(true, Ordering::Relaxed);
            if let Some(attached) = shown.attached.take() {
                // It does not panic.
                let _ = attached.join();
            }
        }
    }
}

/// Of what `tracer why` says, the sentences and the command; what they rest on is for larger screens.
fn verdict(said: &str) -> String {
    let sentences = said.lines().take_while(|line| *line != "rests on:");
    let next = said.lines().filter(|line| line.starts_with("next: "));
    sentences.chain(next).collect::<Vec<_>>().join("\n")
}

fn wait(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        check_interrupt();
        sleep(Duration::from_millis(50));
    }
}

fn socket(folder: &TempDir) -> PathBuf {
    folder.path().join("tmux")
}

fn tmux(socket: &Path) -> Command {
    let mut tmux = Command::new("tmux");
    // The user's own tmux, and what he has set there, are none of ours.
    tmux.arg("-S")
        .arg(socket)
        .args(["-f", "/dev/null"])
        .env_remove("TMUX");
    tmux
}

impl Shown {
    fn open(arguments: &[&str], interrupt: &Arc<AtomicBool>) -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let socket = socket(&folder);
        let path = folder.path().join("captions");
        let captions = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .expect("files can be made");
        // Whichever of the two is left, all of it is.
        let leave = format!("tmux -S {} kill-server", socket.display());
        let top = format!(
            "{} top {}; {leave}",
            tracer_path().display(),
            arguments.join(" ")
        );
        let read = format!("tail -n +1 -f {}; {leave}", path.display());
        let below = format!("{BELOW}%");
        check(tmux(&socket).args(["new-session", "-d", "-x", "200", "-y", "60", &top]));
        check(tmux(&socket).args(["split-window", "-v", "-l", &below, &read]));
        check(tmux(&socket).args(["select-pane", "-t", "0"]));
        let hint = " tracer demo: above `tracer top`, below what happens; q or Ctrl-C ends it ";
        for (option, value) in [
            ("status-left-length", "100"),
            ("status-left", hint),
            ("status-right", ""),
        ] {
            check(tmux(&socket).args(["set-option", "-g", option, value]));
        }
        check(tmux(&socket).args(["set-option", "-g", "window-status-current-format", ""]));
        let child = tmux(&socket)
            .arg("attach-session")
            .stdin(Stdio::inherit())
            .spawn()
            .expect("tmux runs");
        let over = Arc::new(AtomicBool::new(false));
        let attached = watch(child, Arc::clone(&over), Arc::clone(interrupt));
        Self {
            captions,
            attached: Some(attached),
            over,
            folder,
        }
    }
}

/// Whoever leaves before the end wants it to end.
fn watch(mut child: Child, over: Arc<AtomicBool>, interrupt: Arc<AtomicBool>) -> JoinHandle<()> {
    thread::spawn(move || {
        // An error means that nobody is there.
        let _ = child.wait();
        let _ = writeln!(stdout(), "removing what the demo has made");
        if !over.load(Ordering::Relaxed) {
            interrupt.store(true, Ordering::Relaxed);
        }
    })
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // The user may have ended it.
        let _ = tmux(&socket(&self.folder))
            .arg("kill-server")
            .stderr(Stdio::null())
            .status();
        if let Some(attached) = self.attached.take() {
            let _ = attached.join();
        }
    }
}
