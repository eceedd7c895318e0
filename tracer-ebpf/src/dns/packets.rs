//! DNS packets on their way through this node, by the address of their `sk_buff`: the same from the
//! sender's socket to the receiver's, through veth, bridge and host. By its lower half, which programs at a socket
//! have for nothing: two packets at a time with the same one, and the same id, are not reckoned with.
//!
//! A place for each of many addresses, which the latest takes: half the cost of a hash map's entry.
//! Who finds another's packet there sees so by its address.

use aya_ebpf::{EbpfContext as _, programs::SkBuffContext};
use tracer_common::dns::{LookupKey, PACKETS_LEN, Packet};

use crate::maps::PACKETS;

/// The lower half of the address of the packet at a hook, as a number: the verifier lets nobody compute with the
/// context's own, but half of it may be copied, and to read all of it takes a call of a helper.
#[inline(always)]
pub fn address(ctx: &SkBuffContext) -> u64 {
    let context = ctx.as_ptr() as u64;
    let address: u64;
    // SAFETY: a copy from register to register.
    #[cfg(target_arch = "bpf")]
    unsafe {
        core::arch::asm!(
            "w0 = w1",
            in("r1") context,
            out("r0") address,
            options(pure, nomem, nostack),
        );
    }
    // Lints are for the host, which has no such registers.
    #[cfg(not(target_arch = "bpf"))]
    {
        address = lower_half(context);
    }
    address
}

#[inline(always)]
fn lower_half(address: u64) -> u64 {
    address & u32::MAX as u64
}

/// `struct sk_buff` takes 256 bytes, so the bits below say nothing; multiplied, all others count.
#[inline(always)]
fn place(address: u64) -> Option<&'static mut Packet> {
    let hash = (address >> 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    let place = PACKETS.get_ptr_mut(hash as u32 % PACKETS_LEN)?;
    // SAFETY: an array's value; what two CPUs write at once fits neither's id.
    Some(unsafe { &mut *place })
}

/// Remembers a packet that leaves its socket.
#[inline(always)]
pub fn note(address: u64, lookup: &LookupKey, is_answer: bool) {
    if let Some(packet) = place(address) {
        packet.address = address;
        packet.lookup = *lookup;
        packet.is_answer = is_answer as u64;
    }
}

/// The lookup of a packet. Addresses are reused at once, so id and direction must fit.
#[inline(always)]
pub fn lookup(address: u64, id: u16, is_answer: bool) -> Option<LookupKey> {
    let address = lower_half(address);
    let packet = place(address)?;
    (packet.address == address && packet.lookup.id == id && packet.is_answer == is_answer as u64)
        .then_some(packet.lookup)
}

/// May there be a lookup? Quicker than to read the packet.
#[inline(always)]
pub fn is_known(address: u64) -> bool {
    let address = lower_half(address);
    place(address).is_some_and(|packet| packet.address == address)
}
