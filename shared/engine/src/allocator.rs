//! How the C library's allocator treats memory that a pass gives back.

/// Lets the allocator keep what is freed, for the rest of the process's life.
///
/// Every pass frees and takes the same few MiB of intermediate values, and every chunk of a KV cache comes and goes. By default
/// glibc returns such memory to the kernel, which clears it page by page when it is taken again: on a virtual machine that
/// is 2 to 5 % of a prefill pass and a third of the time that a chunk's put and get take. What is kept is what was once
/// in use at the same time, no more.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn keep_freed_memory() {
    const LARGEST: libc::c_int = libc::c_int::MAX;
    // glibc caps its threshold for mappings of their own at 32 MiB by itself; KV caches stay above it, and are lazily zeroed.
    const MAPPED: libc::c_int = 32 << 20;
    #[expect(unsafe_code, reason = "the C library's settings have no safe form")]
    // SAFETY: mallopt takes no pointers, and may be called at any time from any thread.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGEST);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
    }
}

/// Other allocators decide for themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn keep_freed_memory() {}
