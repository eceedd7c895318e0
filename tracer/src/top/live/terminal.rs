//! The terminal: taken on start, given back on every way out, panics and Ctrl-Z included.

use std::io::{self, stdout};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{DisableMouseCapture, EnableMouseCapture};
use ratatui::crossterm::execute;
use rustix::process::{Signal, getpid, kill_process};

use crate::held_log::{self, Held};

static HOOK: Once = Once::new();
/// The terminal is ours. To leave it twice would put the cursor back above what a panic has said.
static OURS: AtomicBool = AtomicBool::new(false);

/// The terminal while it is ours; given back on drop.
pub(in crate::top) struct Screen {
    terminal: DefaultTerminal,
    mouse: bool,
    /// Log lines wait, for they would be written across the picture.
    held: Option<Held>,
}

impl Screen {
    /// Takes the terminal. A panic gives it back before it says anything: ratatui's own hook
    /// leaves the screen, ours the mouse.
    pub fn take() -> io::Result<Self> {
        let terminal = ratatui::try_init()?;
        OURS.store(true, Ordering::Relaxed);
        HOOK.call_once(|| {
            let leave_screen = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                OURS.store(false, Ordering::Relaxed);
                // Whatever happens, the panic must be told.
                let _ = execute!(stdout(), DisableMouseCapture);
                leave_screen(info);
            }));
        });
        let mut screen = Self {
            terminal,
            mouse: false,
            held: Some(held_log::hold()),
        };
        screen.capture_mouse(true)?;
        Ok(screen)
    }

    /// The wheel scrolls; without, the terminal marks text to copy.
    pub fn capture_mouse(&mut self, capture: bool) -> io::Result<()> {
        if capture == self.mouse {
            return Ok(());
        }
        self.mouse = capture;
        if capture {
            execute!(stdout(), EnableMouseCapture)
        } else {
            execute!(stdout(), DisableMouseCapture)
        }
    }

    /// Where to draw.
    pub fn terminal(&mut self) -> &mut DefaultTerminal {
        &mut self.terminal
    }

    /// Gives the terminal back, stops this process until somebody says SIGCONT, and takes it again.
    pub fn suspend(self) -> io::Result<Self> {
        drop(self);
        // SIGTSTP is ours to handle, so that a shell's Ctrl-Z may come this way too.
        kill_process(getpid(), Signal::STOP)?;
        Self::take()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if OURS.swap(false, Ordering::Relaxed) {
            // Nothing better can be done on the way out than to go on.
            let _ = execute!(stdout(), DisableMouseCapture);
            ratatui::restore();
        }
        self.held.take();
    }
}
