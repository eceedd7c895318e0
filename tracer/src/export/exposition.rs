//! What `/metrics` answers: made once for a reading of the counters, however many scrape.

use std::{
    io::Write as _,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use anyhow::Result;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};

use super::negotiate::Format;

/// One reading in one format.
pub struct Exposition {
    plain: Bytes,
    gzip: OnceLock<Bytes>,
}

impl Exposition {
    fn new(text: String) -> Self {
        Self {
            plain: text.into(),
            gzip: OnceLock::new(),
        }
    }

    /// As it is.
    pub fn plain(&self) -> Bytes {
        self.plain.clone()
    }

    /// Compressed, at the first call.
    pub fn gzip(&self) -> Bytes {
        self.gzip
            .get_or_init(|| {
                // 3 ms for 250 pods; the next level takes twice as long and saves a tenth.
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                let written = encoder.write_all(&self.plain);
                let written = written.and_then(|()| encoder.finish());
                written.expect("memory takes it all").into()
            })
            .clone()
    }
}

/// The latest in each format.
#[derive(Default)]
pub struct Latest {
    text: Slot,
    openmetrics: Slot,
}

/// With the moment of its reading. Locked while it is made: who comes second takes it too.
type Slot = Mutex<Option<(Instant, Arc<Exposition>)>>;

impl Latest {
    /// The one of the reading at that moment, made if there is none yet.
    pub fn of(
        &self,
        reading: Instant,
        format: Format,
        make: impl FnOnce() -> Result<String>,
    ) -> Result<Arc<Exposition>> {
        let slot = match format {
            Format::Text => &self.text,
            Format::OpenMetrics => &self.openmetrics,
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, exposition)) = &*slot
            && *at == reading
        {
            return Ok(exposition.clone());
        }
        let exposition = Arc::new(Exposition::new(make()?));
        *slot = Some((reading, exposition.clone()));
        Ok(exposition)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn many_scrapers_of_one_reading_get_one_exposition() {
        let latest = Latest::default();
        let count = AtomicU32::new(0);
        let first = Instant::now();
        let scrape = |reading, format| {
            let make = || {
                Ok(count
                    .fetch_add(1, Ordering::Relaxed)
                    .to_string()
                    .repeat(1000))
            };
            latest.of(reading, format, make).unwrap()
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert_eq!(scrape(first, Format::Text).plain()[..], [b'0'; 1000]));
            }
        });
        assert_eq!(scrape(first, Format::OpenMetrics).plain()[..], [b'1'; 1000]);
        let second = first + Duration::from_millis(1);
        let exposition = scrape(second, Format::Text);
        assert_eq!(exposition.plain()[..], [b'2'; 1000]);
        let mut text = Vec::new();
        let gzip = exposition.gzip();
        GzDecoder::new(&gzip[..]).read_to_end(&mut text).unwrap();
        assert_eq!(text, [b'2'; 1000]);
        assert_eq!(count.load(Ordering::Relaxed), 3);
    }
}
