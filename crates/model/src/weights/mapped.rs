//! Where a tensor's bytes are in a mapped file, and what the system is told about them. Nothing depends on whether it
//! listens.

use memmap2::Mmap;
#[cfg(unix)]
use std::ops::Range;

/// Bytes of a mapped file, in one stretch or two.
#[derive(Clone, Copy)]
pub(crate) struct Mapped<'a> {
    map: &'a Mmap,
    stretches: [&'a [u8]; 2],
}

impl<'a> Mapped<'a> {
    /// `bytes` must be a part of `map`.
    pub fn new(map: &'a Mmap, bytes: &'a [u8]) -> Self {
        Mapped { map, stretches: [bytes, &[]] }
    }

    /// Both stretches of a tensor that lies in two places.
    pub fn join(self, other: Mapped<'a>) -> Self {
        Mapped { stretches: [self.stretches[0], other.stretches[0]], ..self }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.stretches.iter().map(|bytes| bytes.len()).sum()
    }

    /// Lets their pages leave memory: whoever reads them again finds them in the file.
    pub fn forget(&self) {
        #[cfg(unix)]
        for place in self.places() {
            // SAFETY: the mapping is of a file and never written, so what is let go comes back as it was.
            let told = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, place.start, place.len())
            };
            let _ = told;
        }
    }

    /// Lets the system read them while something else is done.
    pub fn will_need(&self) {
        #[cfg(unix)]
        {
            // Linux reads no more for a call than a disk takes at once.
            const STRETCH: usize = 128 << 10;
            for place in self.places() {
                for at in place.clone().step_by(STRETCH) {
                    let _ = self.map.advise_range(memmap2::Advice::WillNeed, at, STRETCH.min(place.end - at));
                }
            }
        }
    }

    /// Where the stretches are in the mapping.
    #[cfg(unix)]
    fn places(&self) -> impl Iterator<Item = Range<usize>> {
        let start = self.map.as_ptr().addr();
        let there = self.stretches.into_iter().filter(|bytes| !bytes.is_empty());
        there.map(move |bytes| {
            let from = bytes.as_ptr().addr() - start;
            from..from + bytes.len()
        })
    }
}
