//! Memory for tensors: blocks cut from few large regions.
//!
//! A training step allocates and frees gigabytes in the same order again and again. Returning them to the system would
//! cost a page fault per page on every step (a visible part of PyTorch's time), so memory is mapped once and kept until
//! the last block and the device are gone. What is kept must not be much more than what is in use, and free lists by
//! size cannot promise that: forward, backward and optimizer want different sizes, and each would keep its own blocks.
//!
//! So a free run of bytes has no size of its own. A region is address space in huge pages, which the system fills in when
//! they are first touched. A request takes the start of the smallest free run that is large enough, the lowest of equals
//! (best fit); a returned block merges with the free runs on both sides. The untouched rest of a region is its largest
//! run, so it is taken last, and the process holds little more than its tensors ever needed at once. The worst case of
//! best fit is bad (Robson 1977), but a training step is nearly a stack: weights, gradients and moments come first and
//! stay at the bottom, layers grow upwards in the forward pass and are given back from the top in the backward pass. The
//! benchmark presets touch 0.5–1.2 % more than their live peak; a test replays a step whose sizes change. After a step
//! all is merged again, so equal steps lie at equal places and nothing grows.
//!
//! Where a block lies depends on the order of requests alone. Both indices of the free runs are trees: a request costs the
//! logarithm of their number, of which there are tens, under one lock.
//!
//! Under Miri, which then sees every access beyond a block, and where there is no `mmap`, each block is an allocation of
//! its own. All memory is zero when it comes from the system, so a block never holds uninitialised bytes; a block that was
//! used before holds what was left in it.

use bytemuck::Pod;
use std::alloc::Layout;
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

/// Alignment of every block: a cache line, and the widest vector.
const ALIGN: usize = 64;
/// Size of a huge page: regions begin and end at one.
const HUGE_PAGE: usize = 2 << 20;
/// Address space of the first region; a later one is as large as all before it. Only what is touched counts.
const FIRST_REGION: usize = 1 << 30;
/// Whether blocks are parts of regions; otherwise each is an allocation of its own.
const REGIONS: bool = cfg!(all(any(target_os = "linux", target_os = "macos"), not(miri)));

/// Bytes of the block that a request for `bytes` gets.
pub(crate) fn block_bytes(bytes: usize) -> usize {
    assert!(bytes < isize::MAX as usize / 2, "a block of {bytes} bytes");
    bytes.max(1).next_multiple_of(ALIGN)
}

/// The memory of a device; blocks hold it alive.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    /// Whether regions are in the system's ordinary pages.
    small_pages: bool,
    regions: Vec<Region>,
    free: FreeRuns,
    /// Bytes in use, and the most that ever were.
    live: usize,
    peak: usize,
}

/// An owned block that returns to its [`Memory`] when dropped.
pub struct Block {
    ptr: NonNull<u8>,
    bytes: usize,
    /// Where it lies in the regions, if there are any.
    place: Option<Place>,
    home: Memory,
}
// SAFETY: the block is plain memory; all access goes through borrows of the tensor that owns it.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Memory {
    /// In ordinary pages: for blocks that are touched here and there, of which huge pages would fill in far more.
    pub fn in_small_pages() -> Self {
        Memory(Arc::new(Mutex::new(Held { small_pages: true, ..Held::default() })))
    }

    /// A block of at least `bytes` bytes. Aborts if the system has no more memory.
    pub fn alloc(&self, bytes: usize) -> Block {
        let bytes = block_bytes(bytes);
        let mut held = self.lock();
        held.live += bytes;
        held.peak = held.peak.max(held.live);
        let (place, ptr) = if REGIONS {
            let place = held.take(bytes);
            (Some(place), held.address(place))
        } else {
            (None, allocate(bytes))
        };
        drop(held);
        if cfg!(debug_assertions) {
            // SAFETY: the block is ours and has so many bytes; all-ones is NaN in every floating-point type.
            unsafe { ptr.write_bytes(0xff, bytes) };
        }
        Block { ptr, bytes, place, home: self.clone() }
    }

    /// Most bytes that were ever in use at once.
    pub fn peak(&self) -> usize {
        self.lock().peak
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Block {
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut held = self.home.lock();
        held.live -= self.bytes;
        match self.place {
            Some(place) => held.free.put(place, self.bytes),
            // SAFETY: a block without a place came from `allocate` with this layout.
            None => unsafe { std::alloc::dealloc(self.ptr.as_ptr(), layout(self.bytes)) },
        }
    }
}

/// Working space: a block of so many elements.
pub(super) struct Scratch<T> {
    block: Block,
    len: usize,
    kind: PhantomData<T>,
}

impl<T: Pod> Scratch<T> {
    pub fn new(memory: &Memory, len: usize) -> Self {
        const { assert!(align_of::<T>() <= ALIGN) };
        Scratch { block: memory.alloc(len * size_of::<T>()), len, kind: PhantomData }
    }

    pub fn zeros(memory: &Memory, len: usize) -> Self {
        let mut scratch = Self::new(memory, len);
        scratch.slice().fill(T::zeroed());
        scratch
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self) -> &[T] {
        // SAFETY: the block is aligned, has that many initialised elements, and any bits are a `T`.
        unsafe { std::slice::from_raw_parts(self.block.as_ptr().cast(), self.len) }
    }

    pub fn slice(&mut self) -> &mut [T] {
        // SAFETY: the block is aligned, has that many initialised elements, any bits are a `T`, and it is ours alone.
        unsafe { std::slice::from_raw_parts_mut(self.block.as_ptr().cast(), self.len) }
    }
}

impl Held {
    /// Room for a block, in a new region if need be.
    fn take(&mut self, bytes: usize) -> Place {
        if let Some(place) = self.free.take(bytes) {
            return place;
        }
        let so_far: usize = self.regions.iter().map(|r| r.bytes).sum();
        let region = Region::new(bytes, so_far.max(FIRST_REGION), !self.small_pages);
        self.free.put(Place { region: self.regions.len(), start: 0 }, region.bytes);
        self.regions.push(region);
        self.free.take(bytes).expect("the new region has room")
    }

    fn address(&self, place: Place) -> NonNull<u8> {
        // SAFETY: places lie within their region.
        unsafe { self.regions[place.region].ptr.add(place.start) }
    }
}

/// Where a block or a free run begins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
struct Place {
    /// Number of the region.
    region: usize,
    /// Bytes from its beginning.
    start: usize,
}

impl Place {
    fn after(self, bytes: usize) -> Place {
        Place { start: self.start + bytes, ..self }
    }
}

/// The free runs of bytes in all regions, no two of them adjacent.
#[derive(Default)]
struct FreeRuns {
    /// Bytes of the run that begins here.
    by_place: BTreeMap<Place, usize>,
    /// The same runs.
    by_bytes: BTreeSet<(usize, Place)>,
}

impl FreeRuns {
    /// The beginning of the smallest run that is large enough, of equals the lowest.
    fn take(&mut self, bytes: usize) -> Option<Place> {
        let &(run, place) = self.by_bytes.range((bytes, Place::default())..).next()?;
        self.remove(place, run);
        if run > bytes {
            self.insert(place.after(bytes), run - bytes);
        }
        Some(place)
    }

    /// Makes a stretch free, which was not.
    fn put(&mut self, mut place: Place, mut bytes: usize) {
        if let Some((&before, &run)) = self.by_place.range(..place).next_back()
            && before.after(run) == place
        {
            self.remove(before, run);
            (place, bytes) = (before, run + bytes);
        }
        if let Some(&run) = self.by_place.get(&place.after(bytes)) {
            self.remove(place.after(bytes), run);
            bytes += run;
        }
        self.insert(place, bytes);
    }

    fn insert(&mut self, place: Place, bytes: usize) {
        self.by_place.insert(place, bytes);
        self.by_bytes.insert((bytes, place));
    }

    fn remove(&mut self, place: Place, bytes: usize) {
        self.by_place.remove(&place);
        self.by_bytes.remove(&(bytes, place));
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, ALIGN).expect("block size")
}

/// Zeroed memory of the system's allocator; `bytes` is not zero.
fn allocate(bytes: usize) -> NonNull<u8> {
    // SAFETY: the layout's size is not zero.
    let ptr = unsafe { std::alloc::alloc_zeroed(layout(bytes)) };
    NonNull::new(ptr).unwrap_or_else(|| std::alloc::handle_alloc_error(layout(bytes)))
}

/// A mapping that is given back when dropped.
struct Region {
    ptr: NonNull<u8>,
    bytes: usize,
}
// SAFETY: a region is plain memory; its blocks say who touches what.
unsafe impl Send for Region {}

impl Region {
    /// At least `need` bytes, `wish` if the system grants so much address space. Aborts if it does not grant `need`.
    fn new(need: usize, wish: usize, huge_pages: bool) -> Region {
        let need = need.next_multiple_of(HUGE_PAGE);
        let mut bytes = wish.next_multiple_of(HUGE_PAGE).max(need);
        loop {
            match NonNull::new(map(bytes, huge_pages)) {
                Some(ptr) => return Region { ptr, bytes },
                None if bytes > need => bytes = (bytes / 2).next_multiple_of(HUGE_PAGE).max(need),
                None => std::alloc::handle_alloc_error(layout(need)),
            }
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        unmap(self.ptr.as_ptr(), self.bytes);
    }
}

/// Pages that are zero and not there until touched, huge ones if that is wished and the system has them. Null if it grants no
/// more.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn map(bytes: usize, huge_pages: bool) -> *mut u8 {
    let room = bytes + HUGE_PAGE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // Without a reservation: the system need not have the memory for what is never touched.
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping touches no existing memory.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), room, access, kind, -1, 0) };
    if start == libc::MAP_FAILED {
        return std::ptr::null_mut();
    }
    let start = start.cast::<u8>();
    let skip = start.addr().next_multiple_of(HUGE_PAGE) - start.addr();
    let region = start.wrapping_add(skip);
    unmap(start, skip);
    unmap(region.wrapping_add(bytes), HUGE_PAGE - skip);
    #[cfg(target_os = "linux")]
    // SAFETY: the range is our own mapping; the advice may fail harmlessly.
    unsafe {
        libc::madvise(region.cast(), bytes, if huge_pages { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = huge_pages;
    region
}

/// Gives pages of [`map`] back.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn unmap(start: *mut u8, bytes: usize) {
    if bytes > 0 {
        // SAFETY: callers own the range, whole pages of a mapping of ours that nobody uses.
        unsafe { libc::munmap(start.cast(), bytes) };
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn map(_: usize, _: bool) -> *mut u8 {
    unreachable!("there are no regions here")
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn unmap(_: *mut u8, _: usize) {
    unreachable!("there are no regions here")
}

#[cfg(test)]
mod tests;
