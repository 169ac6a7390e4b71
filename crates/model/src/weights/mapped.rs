//! Where a tensor's bytes are in a mapped file, and what the system is told about them. Nothing depends on whether it
//! listens.

use memmap2::Mmap;

/// Bytes of a mapped file.
#[derive(Clone, Copy)]
pub(crate) struct Mapped<'a> {
    map: &'a Mmap,
    bytes: &'a [u8],
}

impl<'a> Mapped<'a> {
    /// `bytes` must be a part of `map`.
    pub fn new(map: &'a Mmap, bytes: &'a [u8]) -> Self {
        Mapped { map, bytes }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Lets their pages leave memory: whoever reads them again finds them in the file.
    pub fn forget(&self) {
        #[cfg(unix)]
        {
            let from = self.start();
            // SAFETY: the mapping is of a file and never written, so what is let go comes back as it was.
            let told =
                unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, self.bytes.len()) };
            let _ = told;
        }
    }

    /// Lets the system read them while something else is done.
    pub fn will_need(&self) {
        #[cfg(unix)]
        {
            // Linux reads no more for a call than a disk takes at once.
            const STRETCH: usize = 128 << 10;
            let (from, end) = (self.start(), self.start() + self.bytes.len());
            for at in (from..end).step_by(STRETCH) {
                let _ = self.map.advise_range(memmap2::Advice::WillNeed, at, STRETCH.min(end - at));
            }
        }
    }

    #[cfg(unix)]
    fn start(&self) -> usize {
        self.bytes.as_ptr().addr() - self.map.as_ptr().addr()
    }
}
