//! Where a tensor's bytes are in a mapped file, and what the system is told about them. Nothing depends on whether it
//! listens.

use memmap2::Mmap;
#[cfg(unix)]
use std::ops::Range;

/// Bytes of mapped files, in one stretch or two.
#[derive(Clone, Copy)]
pub(crate) struct Mapped<'a> {
    stretches: [(&'a Mmap, &'a [u8]); 2],
}

impl<'a> Mapped<'a> {
    /// `bytes` must be a part of `map`.
    pub fn new(map: &'a Mmap, bytes: &'a [u8]) -> Self {
        Mapped { stretches: [(map, bytes), (map, &[])] }
    }

    /// Both stretches of a tensor that lies in two places.
    pub fn join(self, other: Mapped<'a>) -> Self {
        Mapped { stretches: [self.stretches[0], other.stretches[0]] }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.stretches.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// Lets their pages leave memory: whoever reads them again finds them in the file.
    pub fn forget(&self) {
        #[cfg(unix)]
        for (map, place) in self.places() {
            // SAFETY: the mapping is of a file and never written, so what is let go comes back as it was.
            let told =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, place.start, place.len()) };
            let _ = told;
        }
    }

    /// Lets the system read them while something else is done.
    pub fn will_need(&self) {
        #[cfg(unix)]
        {
            // Linux reads no more for a call than a disk takes at once.
            const STRETCH: usize = 128 << 10;
            for (map, place) in self.places() {
                for at in place.clone().step_by(STRETCH) {
                    let _ = map.advise_range(memmap2::Advice::WillNeed, at, STRETCH.min(place.end - at));
                }
            }
        }
    }

    /// Where the stretches are in their mappings.
    #[cfg(unix)]
    fn places(&self) -> impl Iterator<Item = (&'a Mmap, Range<usize>)> {
        let there = self.stretches.into_iter().filter(|(_, bytes)| !bytes.is_empty());
        there.map(|(map, bytes)| {
            let from = bytes.as_ptr().addr() - map.as_ptr().addr();
            (map, from..from + bytes.len())
        })
    }
}
