//! What tracer has in the kernel, and what it must not leave there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use crate::process::tracer_path;
use crate::stack::of_programs;
use crate::wait::{ensure, eventually};

/// The kernel keeps so much of a program's name.
const NAME: usize = 15;

/// The names of tracer's programs as the kernel has them, off the binary; everything else hangs on them.
fn names() -> &'static BTreeSet<String> {
    static NAMES: OnceLock<BTreeSet<String>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let bytes = fs::read(tracer_path()).expect("tracer is built");
        let programs = of_programs(&bytes).expect("the binary holds the programs");
        let cut = |name: &String| name.chars().take(NAME).collect();
        programs.keys().map(cut).collect()
    })
}

/// Where a clean stop may leave something by design, and only with a state folder.
const BPFFS: &str = "/sys/fs/bpf/tracer";

/// tracer's programs in the kernel, and its pins.
#[derive(Debug)]
pub struct Leftovers {
    programs: BTreeSet<u32>,
    pinned: bool,
}

impl Leftovers {
    /// What is there now: take it before an agent starts.
    pub fn now() -> Self {
        Self {
            programs: programs(),
            pinned: Path::new(BPFFS).exists(),
        }
    }

    /// Panics unless all that came since is gone again, with a moment for the kernel, which frees
    /// programs after a grace period.
    pub fn assert_none_new(&self) {
        eventually(Duration::from_secs(3), || {
            let new: Vec<u32> = programs().difference(&self.programs).copied().collect();
            ensure(new.is_empty(), || format!("programs are left: ids {new:?}"))
        });
        let pinned = Path::new(BPFFS).exists();
        assert!(pinned <= self.pinned, "{BPFFS} was made and is left");
    }
}

/// Ids of tracer's programs. A program that is not attached goes when its loader ends, so one that
/// outlives the agent is attached or pinned.
pub fn programs() -> BTreeSet<u32> {
    aya::programs::loaded_programs()
        // A program may go between being listed and being asked.
        .filter_map(Result::ok)
        .filter(|program| {
            program
                .name_as_str()
                .is_some_and(|name| names().contains(name))
        })
        .map(|program| program.id())
        .collect()
}
