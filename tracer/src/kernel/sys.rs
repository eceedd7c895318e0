//! The system calls that no library wraps: the only unsafe code of the user half, beside aya's
//! `Pod` impls.
#![allow(unsafe_code)]

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd as _},
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
