//! The system calls that no library wraps: the only unsafe code of the user half, beside aya's
//! `Pod` impls.
#![allow(unsafe_code)]

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
};

use tokio::io::{Interest, unix::AsyncFd};

/// `SO_NETNS_COOKIE` (5.14, include/uapi/asm-generic/socket.h).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the network namespace that `socket` was made in.
pub fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` are valid for writes, and `len` is the size of `cookie`.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if ret == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives free memory back to the kernel, which glibc's allocator keeps by itself.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it locks what it touches.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The eBPF ring, to be waited for. Needs a tokio runtime.
pub fn async_ring(ring: super::load::Ring) -> io::Result<AsyncFd<super::load::Ring>> {
    // SAFETY: the ring owns its file descriptor for as long as it lives, and always has the same.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(io::Error::from)
}

/// A command of bpf(2) (include/uapi/linux/bpf.h).
pub const BPF_PROG_LOAD: u32 = 5;
/// Another.
pub const BPF_PROG_TEST_RUN: u32 = 10;
/// `BPF_PROG_TYPE_RAW_TRACEPOINT`.
const RAW_TRACEPOINT: u32 = 17;

/// Does this command of bpf(2) come to the kernel? Of what is larger than a page the kernel says so (`E2BIG`) before it
/// looks at anything else; what refuses it otherwise stands in front. For who has `CAP_BPF`.
pub fn reaches_bpf(command: u32) -> bool {
    // SAFETY: the kernel reads nothing: not of a null pointer, and not of that size.
    unsafe { libc::syscall(libc::SYS_bpf, command, ptr::null::<u8>(), u32::MAX) };
    io::Error::last_os_error().raw_os_error() == Some(libc::E2BIG)
}

/// The first part of `union bpf_attr` at `BPF_PROG_LOAD`.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u64; 2],
    kern_version: u32,
    prog_flags: u32,
}

/// Loads the least of programs: `r0 = 0; exit`.
pub fn load_nothing() -> io::Result<OwnedFd> {
    let instructions = [[0xb7_u8, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let attributes = ProgLoad {
        prog_type: RAW_TRACEPOINT,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log: [0; 2],
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: the attributes, and what they point to, live until the call returns; it only reads them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attributes,
            size_of::<ProgLoad>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Takes a key out of a hash map of the kernel's, in one: gives what was there.
pub fn lookup_and_delete<K: aya::Pod, V: aya::Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<V> {
    /// The part of `union bpf_attr` for commands on elements.
    #[repr(C)]
    struct Element {
        map: u32,
        _pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    /// include/uapi/linux/bpf.h
    const BPF_MAP_LOOKUP_AND_DELETE_ELEM: u32 = 21;
    let mut value = std::mem::MaybeUninit::<V>::zeroed();
    let attributes = Element {
        map: map.as_raw_fd().cast_unsigned(),
        _pad: 0,
        key: ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: key and value live until the call returns, and are of the map's sizes: its types are `K` and `V`.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_AND_DELETE_ELEM,
            &raw const attributes,
            size_of::<Element>(),
        )
    };
    if ret == 0 {
        // SAFETY: every pattern of bytes is valid of what is `Pod`, and all are written, at first with zeros.
        Ok(unsafe { value.assume_init() })
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Runs it.
pub fn run_nothing(program: &OwnedFd) -> io::Result<()> {
    // `union bpf_attr` at `BPF_PROG_TEST_RUN` begins with the program; no arguments, and nothing comes back but
    // what it returned.
    let mut attributes = [0_i32; 20];
    attributes[0] = program.as_raw_fd();
    // SAFETY: the attributes are valid for reads and writes, and as large as is said.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            attributes.as_mut_ptr(),
            size_of_val(&attributes),
        )
    };
    if ret == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A piece of a pinned array ([`super::state::blob`]).
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Block([u8; Block::SIZE]);

// SAFETY: bytes without padding, every pattern of which is valid.
unsafe impl aya::Pod for Block {}

impl Block {
    /// Bytes in one.
    pub const SIZE: usize = 8192;

    /// The first of these bytes, and zeros.
    pub fn of(bytes: &[u8]) -> Self {
        let mut block = Self([0; Self::SIZE]);
        for (place, byte) in block.0.iter_mut().zip(bytes) {
            *place = *byte;
        }
        block
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}
