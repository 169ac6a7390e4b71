//! Packing: copying a strip of an operand into the order in which the micro-kernel reads it.
//!
//! A panel is `width` lanes (rows of op(A), or columns of op(B)) over some steps of k, stored by groups of steps (one
//! step; a pair in bf16): `panel[group · width + lane][step within the group]`, zero where the operand has no more lanes
//! or steps. Operands come either with the lanes of a step adjacent in memory, which is a copy, or with the steps of a
//! lane adjacent, which is a transposition. An operand of the type's other type is converted on the way.

use super::kernel::{Cols, Data, GemmScalar, Rows};
use crate::cpu::lines::fetch;
use half::bf16;
use std::ops::Range;

/// An operand: a row-major matrix, and which of its directions is k.
pub(super) struct Side<'a, R> {
    pub data: Data<'a, R>,
    /// Elements from one row to the next: the matrix's columns.
    pub pitch: usize,
    pub rows: usize,
    /// True if a row is one step of k, with the lanes side by side; false if a row is a lane.
    pub lanes_adjacent: bool,
    /// Elements from what is packed to what will be, to be fetched along with it; 0 for none. Where there are few products
    /// to pass the time, fetches must be spread over packing itself: many at once hold up its own loads.
    pub ahead: usize,
}

impl<R> Side<'_, R> {
    /// Where a panel's elements lie.
    pub fn stretches(&self, lanes: Range<usize>, steps: Range<usize>) -> Stretches {
        let (rows, cols) = if self.lanes_adjacent { (steps, lanes) } else { (lanes, steps) };
        let (address, size) = match self.data {
            Data::Real(x) => (x.as_ptr().cast::<u8>(), size_of::<R>()),
            Data::Bf16(x) => (x.as_ptr().cast(), size_of::<bf16>()),
        };
        let first = address.wrapping_add((rows.start * self.pitch + cols.start) * size);
        Stretches { first, count: rows.len(), bytes: cols.len() * size, pitch: self.pitch * size }
    }

    /// These rows as they are, if the micro-kernel can read them so: groups lie together, and lines of neighbouring rows
    /// do not all compete for the same places of the first cache.
    pub fn rows_in_place<T: GemmScalar<Real = R>>(&self, first: usize, steps: &Range<usize>) -> Option<Rows<'_, T>>
    where
        R: Copy,
    {
        let data = T::own(self.data)?;
        let fits = !self.lanes_adjacent && steps.len().is_multiple_of(T::GROUP) && self.apart::<T>();
        fits.then(|| Rows {
            data: &data[first * self.pitch + steps.start..],
            row: self.pitch,
            group: T::GROUP,
            tiles: false,
        })
    }

    /// Columns from `first` on as they are, over some steps, if they lie as a micro-kernel could read them: as above, a group is
    /// one step, and rows of the matrix are whole lines (else every vector is read from two). Whether it does, and whether there
    /// are as many as a tile has, is for the caller to know.
    pub fn cols_in_place<T: GemmScalar<Real = R>>(&self, first: usize, steps: &Range<usize>) -> Option<Cols<'_, T>>
    where
        R: Copy,
    {
        let data = T::own(self.data)?;
        let lines = (self.pitch * size_of::<T>()).is_multiple_of(64);
        let fits = self.lanes_adjacent && T::GROUP == 1 && lines && self.apart::<T>();
        fits.then(|| Cols { data: &data[steps.start * self.pitch + first..], group: self.pitch })
    }

    /// Whether lines of neighbouring rows do not all compete for the same places of the first cache.
    fn apart<T>(&self) -> bool {
        !(self.pitch * size_of::<T>()).is_multiple_of(4096)
    }

    pub fn lanes(&self) -> usize {
        if self.lanes_adjacent { self.pitch } else { self.rows }
    }
    pub fn steps(&self) -> usize {
        if self.lanes_adjacent { self.rows } else { self.pitch }
    }
}

/// Stretches of memory of which all lines are needed: where the first one begins, how many there are, bytes of each, and bytes
/// from one to the next.
pub(super) struct Stretches {
    first: *const u8,
    count: usize,
    bytes: usize,
    pitch: usize,
}

impl Stretches {
    pub fn none() -> Self {
        Stretches::of::<u8>(&[])
    }

    pub fn of<T>(x: &[T]) -> Self {
        Stretches { first: x.as_ptr().cast(), count: 1, bytes: size_of_val(x), pitch: 0 }
    }

    /// Their lines, as offsets from where the first stretch begins.
    fn lines(&self) -> impl Iterator<Item = usize> {
        let (bytes, pitch) = (self.bytes, self.pitch);
        (0..self.count).flat_map(move |i| (0..bytes).step_by(64).map(move |at| i * pitch + at))
    }

    /// Asks for all of them.
    pub fn fetch(&self) {
        self.lines().for_each(|offset| fetch(self.first.wrapping_add(offset)));
    }
}

/// Lines of stretches, as offsets from the first: panels that follow one another have the same.
#[derive(Default)]
pub(super) struct Lines {
    shape: [usize; 3],
    offsets: Vec<usize>,
}

impl Lines {
    /// All lines of `x`.
    pub fn of(&mut self, x: &Stretches) -> Coming<'_> {
        let shape = [x.count, x.bytes, x.pitch];
        if self.shape != shape {
            self.offsets.clear();
            self.offsets.extend(x.lines());
            self.shape = shape;
        }
        Coming { first: x.first, offsets: &self.offsets }
    }
}

/// Cache lines to be brought into the second cache beside a product, a few at a time: many at once wait for one another, and
/// the product for them.
#[derive(Clone, Copy)]
pub(super) struct Coming<'a> {
    first: *const u8,
    offsets: &'a [usize],
}

impl Coming<'_> {
    pub const NONE: Self = Coming { first: std::ptr::null(), offsets: &[] };

    /// Part `part` of `parts` of them.
    pub fn part(self, part: usize, parts: usize) -> Self {
        let [start, end] = [part, part + 1].map(|part| self.offsets.len() * part / parts);
        Coming { offsets: &self.offsets[start..end], ..self }
    }

    /// Asks for so many of them, and returns the others.
    #[inline(always)]
    pub fn fetch(self, count: usize) -> Self {
        let (now, offsets) = self.offsets.split_at(count.min(self.offsets.len()));
        now.iter().for_each(|&offset| fetch(self.first.wrapping_add(offset)));
        Coming { offsets, ..self }
    }

    #[cfg(target_arch = "x86_64")]
    pub fn len(&self) -> usize {
        self.offsets.len()
    }
}

/// Packs the panel of `W` lanes that begins with `lanes`, in groups of `G` steps.
#[inline(always)]
pub(super) fn pack<T: GemmScalar, const W: usize, const G: usize>(
    side: &Side<T::Real>,
    lanes: Range<usize>,
    steps: Range<usize>,
    panel: &mut [T],
) {
    match (T::own(side.data), side.data) {
        (Some(x), _) => pack_as::<T, T, W, G>(side, x, |x| x, lanes, steps, panel),
        (None, Data::Real(x)) => pack_as::<T, T::Real, W, G>(side, x, T::narrow, lanes, steps, panel),
        (None, Data::Bf16(x)) => pack_as::<T, bf16, W, G>(side, x, T::from_bf16, lanes, steps, panel),
    }
}

/// For any machine: the compiler vectorises the copies.
#[inline(always)]
fn pack_as<T: GemmScalar, X: Copy, const W: usize, const G: usize>(
    side: &Side<T::Real>,
    data: &[X],
    convert: impl Fn(X) -> T,
    lanes: Range<usize>,
    steps: Range<usize>,
    panel: &mut [T],
) {
    assert!(lanes.len() <= W && panel.len() == W * steps.len().next_multiple_of(G));
    let (panel, _) = panel.as_chunks_mut::<G>().0.as_chunks_mut::<W>();
    if lanes.len() < W {
        panel.fill([[T::zeroed(); G]; W]);
    } else if let Some(last) = panel.last_mut() {
        *last = [[T::zeroed(); G]; W];
    }
    if side.lanes_adjacent {
        let mut rows =
            data[steps.start * side.pitch..].chunks(side.pitch).take(steps.len()).map(|row| &row[lanes.clone()]);
        for out in &mut *panel {
            let rows: [&[X]; G] = std::array::from_fn(|_| rows.next().unwrap_or(&[]));
            if rows.iter().all(|row| row.len() == W) {
                let rows: [&[X; W]; G] = rows.map(|row| row.first_chunk().expect("W lanes"));
                *out = std::array::from_fn(|lane| std::array::from_fn(|g| convert(rows[g][lane])));
            } else {
                for (g, row) in rows.iter().enumerate() {
                    out.iter_mut().zip(*row).for_each(|(out, &x)| out[g] = convert(x));
                }
            }
        }
    } else {
        // A few steps of all lanes at a time, so that the lines that are written stay in the first cache.
        let at_once = G.max(16);
        let first = lanes.start;
        for (out, at) in panel.chunks_mut(at_once / G).zip(steps.clone().step_by(at_once)) {
            for lane in lanes.clone() {
                let row = &data[lane * side.pitch + at..lane * side.pitch + (at + at_once).min(steps.end)];
                for (x, out) in row.chunks(G).zip(&mut *out) {
                    x.iter().zip(&mut out[lane - first]).for_each(|(&x, out)| *out = convert(x));
                }
            }
        }
    }
    if T::SECOND_FIRST {
        const { assert!(!T::SECOND_FIRST || G == 1, "steps, not groups of them") };
        panel.as_chunks_mut::<2>().0.iter_mut().for_each(|two| two.reverse());
    }
}
