//! What a DNS message says: its header and its first question.

use core::hint::black_box;

use aya_ebpf::{
    bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes, programs::SkBuffContext,
};
use tracer_common::dns::{Lookup, Outcome, QUESTION_LEN};

use crate::packet::{self, Udp};

/// Length of a DNS header.
pub const HEADER: u32 = 12;
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x100_0000_01b3;

/// The DNS header's fields (RFC 1035 4.1.1).
pub struct Header {
    pub id: u16,
    flags: u16,
    pub questions: u16,
    answers: u16,
}

impl Header {
    #[inline(always)]
    pub fn load(ctx: &SkBuffContext, udp: &Udp) -> Option<Self> {
        let h = packet::load_linear::<8>(ctx, udp.payload())?;
        // The rest of the header must be there too.
        if ctx.len() < udp.payload() + HEADER {
            return None;
        }
        let header = Self {
            id: u16::from_be_bytes([h[0], h[1]]),
            flags: u16::from_be_bytes([h[2], h[3]]),
            questions: u16::from_be_bytes([h[4], h[5]]),
            answers: u16::from_be_bytes([h[6], h[7]]),
        };
        // Opcode QUERY only.
        (header.flags & 0x7800 == 0).then_some(header)
    }

    #[inline(always)]
    pub fn is_response(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    #[inline(always)]
    pub fn question(&self, ctx: &SkBuffContext, udp: &Udp) -> u64 {
        if self.questions == 0 {
            return 0;
        }
        dns_question(ctx.skb.skb, udp.payload() + HEADER, ctx.len())
    }

    #[inline(always)]
    pub fn outcome(&self) -> Outcome {
        Outcome::of_answer(
            self.flags as u8 & 0xf,
            self.answers,
            self.flags & 0x200 != 0,
        )
    }
}

/// The bytes of a question, in words: what is hashed.
pub type Words = [u64; QUESTION_WORDS];
/// How many there are.
pub const QUESTION_WORDS: usize = QUESTION_LEN.div_ceil(8);
/// A name of 255 bytes has at most this many labels.
const MAX_LABELS: u32 = 128;
/// Longest label; a larger number is no length.
const MAX_LABEL: u8 = 63;

/// Hash of the first question, letter case folded. 0 without one.
///
/// Out of line: the buffer is half the stack, and a per-CPU one would not do, for these programs
/// are preempted and interrupted by each other. Global: see [`crate::util`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn dns_question(skb: *mut __sk_buff, start: u32, packet_len: u32) -> u64 {
    let mut words: Words = [0; QUESTION_WORDS];
    let len = bounded_len(start, packet_len);
    if len == 0 {
        return 0;
    }
    // SAFETY: `words` has room for QUESTION_LEN bytes, and `len` is no more.
    if unsafe { bpf_skb_load_bytes(skb.cast(), start, words.as_mut_ptr().cast(), len) } != 0 {
        return 0;
    }
    hash_inline(&words, len)
}

/// The same of bytes that were read already, zero from `len` on. Global: see [`crate::util`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_hash(words: *const Words, len: u32) -> u64 {
    // SAFETY: a caller's.
    unsafe { words.as_ref() }.map_or(0, |words| hash_inline(words, len))
}

/// Notes how many of the first `len` bytes of a lookup's question are the question. Global: see
/// [`crate::util`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_note_length(lookup: *mut Lookup, len: u32) -> u64 {
    // SAFETY: a caller's.
    if let Some(lookup) = unsafe { lookup.as_mut() } {
        lookup.question_len = length(lookup.question.as_ptr(), len) as u16;
    }
    0
}

/// Label by label and word by word: the verifier walks through every round, and byte by byte it
/// walks fifty times as long.
#[inline(always)]
fn hash_inline(words: &Words, len: u32) -> u64 {
    let len = length(words.as_ptr().cast(), len);
    let mut hash = FNV_OFFSET;
    let mut i = 0;
    while i < QUESTION_WORDS {
        let at = i as u32 * 8;
        if at >= len {
            break;
        }
        let left = len - at;
        let mask = if left >= 8 { !0 } else { (1 << (left * 8)) - 1 };
        hash = (hash ^ lower_case(words[i] & mask)).wrapping_mul(FNV_PRIME);
        hash ^= hash >> 32; // a product carries upwards only
        i += 1;
    }
    // Mixed in, not put beside: a value of which the verifier knows nothing is one state to it.
    hash.wrapping_mul(FNV_PRIME) ^ len as u64
}

/// Length of the first question in `len` bytes: labels, each behind its length, until the one of
/// length 0; then type and class. All bytes, where it is cut off.
#[inline(always)]
fn length(bytes: *const u8, len: u32) -> u32 {
    let mut end = 0u32;
    let mut i = 0;
    while i < MAX_LABELS {
        // black_box: as in `bounded_len`.
        let at = black_box(end);
        if at >= QUESTION_LEN as u32 {
            break;
        }
        // SAFETY: within QUESTION_LEN bytes.
        let label = unsafe { *bytes.add(at as usize) };
        end = at + 1 + label as u32;
        if label == 0 || label > MAX_LABEL {
            break;
        }
        i += 1;
    }
    let end = end + 4;
    if end < len { end } else { len }
}

/// Bytes `A` to `Z` become `a` to `z`, eight at a time. (Lengths of labels are below them; a type or
/// class may change too, which is as good for a hash.)
#[inline(always)]
fn lower_case(word: u64) -> u64 {
    const HIGH: u64 = 0x8080_8080_8080_8080;
    const ONES: u64 = 0x0101_0101_0101_0101;
    let low = word & !HIGH;
    let from_a = low + ONES * (0x80 - b'A' as u64);
    let beyond_z = low + ONES * (0x80 - b'Z' as u64 - 1);
    word | ((from_a & !beyond_z & !word & HIGH) >> 2)
}

/// How many bytes from `start` a question may take: at most [`QUESTION_LEN`].
#[inline(always)]
pub fn bounded_len(start: u32, packet_len: u32) -> u32 {
    if packet_len <= start {
        return 0;
    }
    // black_box: LLVM knows that the length is in range and drops the check that the verifier needs
    // to see. One less than it: verifiers before 6.8 learn nothing from "not 0"
    // (kernel/bpf/verifier.c, reg_set_min_max), and would see a read of no bytes.
    let beyond_first = black_box(packet_len - start - 1);
    if beyond_first >= QUESTION_LEN as u32 {
        QUESTION_LEN as u32
    } else {
        beyond_first + 1
    }
}
