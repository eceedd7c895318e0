//! `cargo xtask demo` runs this: an incident, played on this kernel for somebody who watches. The plays are
//! the tests' own (`tests::incident`).

mod plain;
mod screen;
mod wrapped;

use std::any::Any;
use std::env;
use std::io::{IsTerminal as _, stdin, stdout};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tests::incident::{Audience, Timeline, dead_endpoint, overflow, sick_node};
use tests::wait::{Interrupted, end_on};

use crate::plain::Plain;
use crate::screen::Screen;
use crate::wrapped::{size, wrapped};

/// A play, to its end.
type Play = fn(&mut Timeline);

/// By the name that the user gives.
const PLAYS: [(&str, Play); 3] = [
    ("overflow", overflow::play),
    ("dead-endpoint", dead_endpoint::play),
    ("sick-node", sick_node::play),
];

/// Behind time and stage in [`Timeline::text`].
const COURSE_MARGIN: usize = 27;

/// As a shell has it for SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let name = env::args().nth(1).unwrap_or_default();
    let Some((_, play)) = PLAYS.iter().find(|(known, _)| *known == name) else {
        let names = PLAYS.map(|(name, _)| name).join(", ");
        eprintln!("error: no incident {name:?}; there are {names}");
        return ExitCode::from(2);
    };
    let interrupt = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupt)).expect("signals can be caught");
    }
    end_on(Arc::clone(&interrupt));
    // On the way out after a signal, what was cut off in the middle complains.
    let told = take_hook();
    let quiet = Arc::clone(&interrupt);
    set_hook(Box::new(move |panic| {
        if !quiet.load(Ordering::Relaxed) {
            told(panic);
        }
    }));
    let on_terminal = stdin().is_terminal() && stdout().is_terminal();
    let audience: Box<dyn Audience> = if on_terminal {
        Box::new(Screen::new(Arc::clone(&interrupt)))
    } else {
        Box::new(Plain::default())
    };
    let mut timeline = Timeline::with(audience);
    // What the play made is removed on its way out, whatever ends it.
    let played = catch_unwind(AssertUnwindSafe(|| play(&mut timeline)));
    let mut course = timeline.text();
    if on_terminal {
        course = wrapped(&course, size().1, COURSE_MARGIN);
    }
    // Gives the terminal back.
    drop(timeline);
    match played {
        Ok(()) => {
            println!(
                "\nWhat happened, in seconds from the onset:\n\n{}",
                course.trim_end()
            );
            ExitCode::SUCCESS
        }
        Err(panic) if was_interrupted(&*panic, &interrupt) => {
            eprintln!("interrupted; what the demo had made is removed");
            ExitCode::from(INTERRUPTED)
        }
        Err(_) => ExitCode::FAILURE,
    }
}

fn was_interrupted(panic: &(dyn Any + Send), interrupt: &AtomicBool) -> bool {
    panic.is::<Interrupted>() || interrupt.load(Ordering::Relaxed)
}
