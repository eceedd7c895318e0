//! Records of the ring: any length, version, kind and contents.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tracer::{hooks, kernel::reasons::Reasons};

static REASONS: LazyLock<Reasons> = LazyLock::new(Reasons::default);

fuzz_target!(|bytes: &[u8]| {
    let Ok(record) = hooks::decode(bytes, &REASONS) else {
        return;
    };
    let json = serde_json::to_string(&record.details).expect("details are JSON");
    for text in [record.comm, json] {
        assert!(
            text.bytes()
                .all(|byte| byte == b' ' || byte.is_ascii_graphic()),
            "{text:?}"
        );
    }
});
