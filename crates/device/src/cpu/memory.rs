//! Blocks of host memory, kept and reused.
//!
//! A training step allocates the same sizes again and again. Returning them to the system would cost a page fault per
//! 4 KB on every step (a visible part of PyTorch's time), so a dropped block goes to a free list by size instead.
//! Large blocks ask for huge pages.

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

const ALIGN: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

#[derive(Default)]
struct Free {
    /// Free blocks by size in bytes.
    blocks: BTreeMap<usize, Vec<Raw>>,
    /// Bytes in use, and the most that ever were.
    live: usize,
    peak: usize,
}

struct Raw(NonNull<u8>);
// SAFETY: a raw block is plain memory that only its one owner touches.
unsafe impl Send for Raw {}

/// The free lists; blocks hold it alive.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Free>>);

/// An owned block that returns to its [`Memory`] when dropped.
pub struct Block {
    ptr: NonNull<u8>,
    bytes: usize,
    home: Memory,
}
// SAFETY: the block is plain memory; all access goes through borrows of the tensor that owns it.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

fn layout(bytes: usize) -> Layout {
    let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { ALIGN };
    Layout::from_size_align(bytes, align).expect("block size")
}

impl Memory {
    /// A block of at least `bytes` bytes.
    pub fn alloc(&self, bytes: usize) -> Block {
        // Few size classes, so that a slightly different number of routed rows finds a used block.
        let unit = (bytes / 8).next_power_of_two().clamp(ALIGN, HUGE_PAGE);
        let bytes = bytes.max(1).next_multiple_of(unit);
        let mut free = self.0.lock().expect("memory lock");
        free.live += bytes;
        free.peak = free.peak.max(free.live);
        let reused = free.blocks.get_mut(&bytes).and_then(Vec::pop);
        drop(free);
        let ptr = match reused {
            Some(raw) => raw.0,
            None => {
                // SAFETY: the layout's size is not zero.
                let ptr = unsafe { std::alloc::alloc_zeroed(layout(bytes)) };
                let Some(ptr) = NonNull::new(ptr) else { std::alloc::handle_alloc_error(layout(bytes)) };
                #[cfg(target_os = "linux")]
                if bytes >= HUGE_PAGE {
                    // SAFETY: the range is our own fresh allocation, aligned to the huge page; the advice may fail harmlessly.
                    unsafe { libc::madvise(ptr.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
                }
                ptr
            }
        };
        if cfg!(debug_assertions) {
            // SAFETY: the block is ours and has `bytes` bytes; all-ones is NaN in every floating-point type.
            unsafe { ptr.as_ptr().write_bytes(0xff, bytes) };
        }
        Block { ptr, bytes, home: self.clone() }
    }

    /// Most bytes that were ever in use at once.
    pub fn peak(&self) -> usize {
        self.0.lock().expect("memory lock").peak
    }
}

impl Block {
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let Ok(mut free) = self.home.0.lock() else { return };
        free.live -= self.bytes;
        free.blocks.entry(self.bytes).or_default().push(Raw(self.ptr));
    }
}

impl Drop for Free {
    fn drop(&mut self) {
        for (bytes, blocks) in std::mem::take(&mut self.blocks) {
            for raw in blocks {
                // SAFETY: the block came from `alloc_zeroed` with this layout and nobody owns it.
                unsafe { std::alloc::dealloc(raw.0.as_ptr(), layout(bytes)) };
            }
        }
    }
}
