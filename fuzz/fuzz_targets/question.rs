//! The question of a DNS message, as pods put it on the wire.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tracer::hooks::question;

fuzz_target!(|bytes: &[u8]| {
    let (name, kind) = question::decode(bytes);
    assert!(name.len() <= (4 * bytes.len()).max(1));
    for text in [name, kind] {
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
    }
});
