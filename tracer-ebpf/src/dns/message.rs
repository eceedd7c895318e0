//! What a DNS message says: its header and its first question.

use core::hint::black_box;

use aya_ebpf::{
    bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes, programs::SkBuffContext,
};
use tracer_common::dns::{Outcome, QUESTION_LEN};

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
        let h = packet::load::<8>(ctx, udp.payload())?;
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
        question(ctx.skb.skb, udp.payload() + HEADER, ctx.len())
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

/// Hash of the first question, letter case folded; its length in the low 16 bits. 0 without one.
///
/// Out of line: the buffer is half the stack, and a per-CPU one would not do, for these programs
/// are preempted and interrupted by each other.
#[inline(never)]
fn question(skb: *mut __sk_buff, start: u32, packet_len: u32) -> u64 {
    let mut bytes = [0u8; QUESTION_LEN];
    let len = bounded_len(start, packet_len);
    if len == 0 {
        return 0;
    }
    // SAFETY: `bytes` has room for QUESTION_LEN bytes, and `len` is no more.
    if unsafe { bpf_skb_load_bytes(skb.cast(), start, bytes.as_mut_ptr().cast(), len) } != 0 {
        return 0;
    }
    // Name: labels, each behind its length, until the one of length 0; then type and class.
    let mut hash = FNV_OFFSET;
    let mut label = 0u8;
    let mut tail = 0u8;
    let mut i = 0usize;
    while i < QUESTION_LEN {
        let mut byte = bytes[i];
        let mut last = false;
        if tail > 0 {
            tail -= 1;
            last = tail == 0;
        } else if label > 0 {
            label -= 1;
            if byte.is_ascii_uppercase() {
                byte |= 0x20;
            }
        } else if byte == 0 {
            tail = 4;
        } else {
            label = byte;
        }
        hash = (hash ^ byte as u64).wrapping_mul(FNV_PRIME);
        i += 1;
        if last {
            break;
        }
    }
    let len = if (i as u32) < len { i as u32 } else { len };
    hash & !0xffff | len as u64
}

/// How many bytes from `start` a question may take: at most [`QUESTION_LEN`].
#[inline(always)]
pub fn bounded_len(start: u32, packet_len: u32) -> u32 {
    if packet_len <= start {
        return 0;
    }
    // black_box: LLVM knows that the length is in range and drops the check that the verifier needs
    // to see.
    let len = black_box(packet_len - start);
    if len > QUESTION_LEN as u32 {
        QUESTION_LEN as u32
    } else {
        len
    }
}
