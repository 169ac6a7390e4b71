//! Blocks of host memory, kept and reused.
//!
//! A training step allocates the same sizes again and again. Returning them to the system would cost a page fault per
//! 4 KB on every step (a visible part of PyTorch's time), so a dropped block goes to a free list instead, and the next
//! tensor of about that size takes it. Sizes are rounded up to one of eight classes per power of two, and a block up to
//! a quarter too large is taken too, so that a slightly different number of routed rows finds a used block.
//!
//! What is kept is bounded: before asking the system for more, free blocks are given back, those unused for longest first,
//! until all that is held is at most half more than was ever in use at once.
//!
//! Large blocks come straight from the system, aligned to huge pages and asking for them before anything is written.
//! All memory is zero when it comes from the system, so a block never holds uninitialised bytes.

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

/// Alignment of every block: a cache line, and the widest vector.
const ALIGN: usize = 64;
/// Size of a huge page; blocks from here on are mapped, not allocated.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes that a request for `bytes` is counted as: rounded up to its size class, at most an eighth more.
pub(crate) fn class(bytes: usize) -> usize {
    let eighth = (bytes / 8).max(1);
    let unit = 1usize << (usize::BITS - 1 - eighth.leading_zeros());
    bytes.max(1).next_multiple_of(unit.max(ALIGN))
}

/// The free lists; blocks hold them alive.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Lists>>);

#[derive(Default)]
struct Lists {
    /// Free blocks by size in bytes, each with the time of its return; the oldest first.
    free: BTreeMap<usize, Vec<(u64, Raw)>>,
    free_bytes: usize,
    /// Counts returns of blocks: the clock of the free lists.
    time: u64,
    /// Bytes in use, and the most that ever were.
    live: usize,
    peak: usize,
}

/// An owned block that returns to its [`Memory`] when dropped.
pub struct Block {
    ptr: NonNull<u8>,
    /// The block itself, until it is dropped.
    raw: Option<Raw>,
    /// What the request was counted as; the block itself may be larger.
    counted: usize,
    home: Memory,
}
// SAFETY: the block is plain memory; all access goes through borrows of the tensor that owns it.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Memory {
    /// A block of at least `bytes` bytes. Aborts if the system has no more memory.
    pub fn alloc(&self, bytes: usize) -> Block {
        let counted = class(bytes);
        let mut lists = self.lock();
        lists.live += counted;
        lists.peak = lists.peak.max(lists.live);
        let raw = lists.take(counted).unwrap_or_else(|| {
            lists.trim();
            Raw::new(counted)
        });
        drop(lists);
        if cfg!(debug_assertions) {
            // SAFETY: the block is ours and has so many bytes; all-ones is NaN in every floating-point type.
            unsafe { raw.ptr.as_ptr().write_bytes(0xff, raw.bytes) };
        }
        Block { ptr: raw.ptr, raw: Some(raw), counted, home: self.clone() }
    }

    /// Most bytes that were ever in use at once.
    pub fn peak(&self) -> usize {
        self.lock().peak
    }

    fn lock(&self) -> MutexGuard<'_, Lists> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Lists {
    /// The smallest free block that is large enough and not much too large.
    fn take(&mut self, bytes: usize) -> Option<Raw> {
        let (&size, blocks) = self.free.range_mut(bytes..=bytes + bytes / 4).next()?;
        let (_, raw) = blocks.pop()?;
        if blocks.is_empty() {
            self.free.remove(&size);
        }
        self.free_bytes -= size;
        Some(raw)
    }

    fn put(&mut self, raw: Raw) {
        self.time += 1;
        self.free_bytes += raw.bytes;
        self.free.entry(raw.bytes).or_default().push((self.time, raw));
    }

    /// Gives free blocks back to the system until what is held is within the bound.
    fn trim(&mut self) {
        while self.free_bytes > 0 && self.live + self.free_bytes > self.peak + self.peak / 2 {
            let oldest = self.free.iter().min_by_key(|(_, blocks)| blocks.first().map(|(time, _)| *time));
            let Some((&size, _)) = oldest else { return };
            if let Some(blocks) = self.free.get_mut(&size) {
                drop(blocks.remove(0));
                if blocks.is_empty() {
                    self.free.remove(&size);
                }
            }
            self.free_bytes -= size;
        }
    }
}

impl Block {
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut lists = self.home.lock();
        lists.live -= self.counted;
        if let Some(raw) = self.raw.take() {
            lists.put(raw);
        }
    }
}

/// Memory of the system, given back when dropped.
struct Raw {
    ptr: NonNull<u8>,
    bytes: usize,
}
// SAFETY: a raw block is plain memory that only its one owner touches.
unsafe impl Send for Raw {}

/// Whether blocks of this size are mapped by hand.
const fn mapped(bytes: usize) -> bool {
    cfg!(all(target_os = "linux", not(miri))) && bytes >= HUGE_PAGE
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, ALIGN).expect("block size")
}

impl Raw {
    /// Zeroed memory; `bytes` is a size class.
    fn new(bytes: usize) -> Raw {
        // SAFETY: the layout's size is not zero.
        let ptr = if mapped(bytes) { map(bytes) } else { unsafe { std::alloc::alloc_zeroed(layout(bytes)) } };
        let Some(ptr) = NonNull::new(ptr) else { std::alloc::handle_alloc_error(layout(bytes)) };
        Raw { ptr, bytes }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if mapped(self.bytes) {
            unmap(self.ptr.as_ptr(), self.bytes);
        } else {
            // SAFETY: the block came from `alloc_zeroed` with this layout.
            unsafe { std::alloc::dealloc(self.ptr.as_ptr(), layout(self.bytes)) };
        }
    }
}

/// Pages that are zero and not there until touched, in huge pages if the system has them. Null if it has no memory.
#[cfg(target_os = "linux")]
fn map(bytes: usize) -> *mut u8 {
    let room = bytes + HUGE_PAGE;
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new anonymous mapping touches no existing memory.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), room, access, kind, -1, 0) };
    if start == libc::MAP_FAILED {
        return std::ptr::null_mut();
    }
    let start = start.cast::<u8>();
    let skip = start.addr().next_multiple_of(HUGE_PAGE) - start.addr();
    let block = start.wrapping_add(skip);
    unmap(start, skip);
    unmap(block.wrapping_add(bytes), HUGE_PAGE - skip);
    // SAFETY: the range is our own mapping; the advice may fail harmlessly.
    unsafe { libc::madvise(block.cast(), bytes, libc::MADV_HUGEPAGE) };
    block
}

/// Gives pages of [`map`] back.
#[cfg(target_os = "linux")]
fn unmap(start: *mut u8, bytes: usize) {
    if bytes > 0 {
        // SAFETY: callers own the range, a part of a mapping of ours that nobody uses. Size classes of mapped blocks are
        // multiples of 256 KB, hence of the page size.
        unsafe { libc::munmap(start.cast(), bytes) };
    }
}

#[cfg(not(target_os = "linux"))]
fn map(_: usize) -> *mut u8 {
    unreachable!("blocks are mapped on Linux only")
}

#[cfg(not(target_os = "linux"))]
fn unmap(_: *mut u8, _: usize) {
    unreachable!("blocks are mapped on Linux only")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn held(memory: &Memory) -> usize {
        let lists = memory.lock();
        lists.live + lists.free_bytes
    }

    #[test]
    fn a_dropped_block_is_used_again() {
        let memory = Memory::default();
        for bytes in [1, 1000, 1 << 20, 5 << 20] {
            let first = memory.alloc(bytes).as_ptr();
            assert_eq!(memory.alloc(bytes).as_ptr(), first);
            assert_eq!(memory.alloc(bytes - bytes / 20).as_ptr(), first, "a little less");
            let (a, b) = (memory.alloc(bytes), memory.alloc(bytes));
            assert_ne!(a.as_ptr(), b.as_ptr());
        }
    }

    #[test]
    fn sizes_that_never_return_do_not_pile_up() {
        let memory = Memory::default();
        for i in 1..200 {
            drop(memory.alloc(i * 100_000));
            assert!(held(&memory) <= memory.peak() + memory.peak() / 2);
        }
        assert_eq!(memory.peak(), class(199 * 100_000));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]

        #[test]
        fn classes_are_close_and_ordered(a in 0usize..1 << 40, b in 0usize..1 << 40) {
            prop_assert!(class(a) >= a.max(1) && class(a) <= a + a / 8 + ALIGN);
            prop_assert!(class(a).is_multiple_of(ALIGN));
            prop_assert!(a > b || class(a) <= class(b));
            prop_assert_eq!(class(class(a)), class(a));
            prop_assert!(a < HUGE_PAGE || class(a).is_multiple_of(HUGE_PAGE / 8));
        }

        /// Blocks that live at the same time never overlap, are aligned, and the counts add up.
        #[test]
        fn live_blocks_are_disjoint(ops in prop::collection::vec((0usize..3 << 20, 0usize..6), 1..40)) {
            let memory = Memory::default();
            let (mut blocks, mut peak) = (Vec::<Block>::new(), 0);
            for (bytes, victim) in ops {
                if victim < blocks.len() {
                    blocks.swap_remove(victim);
                }
                blocks.push(memory.alloc(bytes));
                let live = blocks.iter().map(|b| b.counted).sum::<usize>();
                peak = peak.max(live);
                // Two statements: the lock must be free again before it is taken again.
                let counted = memory.lock().live;
                prop_assert_eq!((counted, memory.peak()), (live, peak));
            }
            let mut ranges: Vec<_> = blocks.iter().map(|b| (b.as_ptr().addr(), b.counted)).collect();
            ranges.sort();
            prop_assert!(ranges.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
            prop_assert!(ranges.iter().all(|r| r.0.is_multiple_of(ALIGN)));
        }
    }
}
