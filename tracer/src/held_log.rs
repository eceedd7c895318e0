//! Log lines on stderr, held back while a picture is on the terminal.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// Bytes held; the newest are what matters then.
const MOST: usize = 64 << 10;

/// The lines, while they are held.
static HELD: Mutex<Option<Vec<u8>>> = Mutex::new(None);

/// Lines go out once this is dropped.
#[derive(Debug)]
pub struct Held(());

/// Holds log lines back from here on.
pub fn hold() -> Held {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.get_or_insert_default();
    Held(())
}

impl Drop for Held {
    fn drop(&mut self) {
        let lines = HELD.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A closed stderr is no reason to fail.
        let _ = io::stderr().write_all(&lines.unwrap_or_default());
    }
}

/// Writes to stderr, or holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        match held.as_mut() {
            Some(lines) => {
                let too_many = (lines.len() + bytes.len()).saturating_sub(MOST);
                lines.drain(..too_many.min(lines.len()));
                lines.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wait_and_do_not_pile_up() {
        let held = hold();
        for _ in 0..MOST {
            Stderr.write_all(b"line\n").unwrap();
        }
        let length = || HELD.lock().unwrap().as_ref().map(Vec::len);
        assert_eq!(length(), Some(MOST));
        // Not to stderr: this is a test.
        *HELD.lock().unwrap() = Some(Vec::new());
        drop(held);
        assert_eq!(length(), None);
    }
}
