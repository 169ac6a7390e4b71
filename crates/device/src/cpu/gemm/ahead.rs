//! Packing columns ahead of the rectangles that share them.
//!
//! A column of B is packed anew for every rectangle above which it lies: seldom enough for vectors, but a matrix unit is
//! done with a rectangle so soon that this took a seventh of its time. So where it pays, all threads first pack a call's
//! columns once, as many of them as [`AHEAD_BYTES`] hold, and then compute all rectangles of these columns. They are cut
//! as though columns cost little, which makes them wide, so that rows are packed once, too.

use super::kernel::{GemmScalar, Kernel};
use super::plan::{Size, Tile};
use super::put::Target;
use super::{Line, MEMORY, Micro, Product, pieces};
use crate::cpu::bands::bands;
use crate::cpu::memory::Scratch;
use crate::cpu::pool::Pool;
use std::ops::Range;

/// Bytes of columns that are packed at a time: of little weight beside a model.
pub(super) const AHEAD_BYTES: usize = 32 << 20;

/// Panels of columns that a thread packs at a time at most: lanes that lie side by side are then read in long stretches.
const AT_ONCE: usize = 8;

/// Cost of a byte that is packed into memory, and not into a cache, in multiply-adds of the time of f32.
const WRITING: f64 = 4.0;
/// As [`WRITING`], of reading it again, which happens beside the products.
const READING: f64 = 0.5;

/// Columns of one product of a call, over some steps.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    pub product: usize,
    pub cols: Range<usize>,
    /// Whole blocks, except at the end.
    pub steps: Range<usize>,
    /// Elements before theirs among those that are packed at a time; `None` for columns that every rectangle packs itself.
    pub at: Option<usize>,
}

/// What is computed at a time.
pub(super) struct Turn {
    pub columns: Vec<Columns>,
    /// Rectangles of these columns, which are the tiles' products.
    pub tiles: Vec<Tile>,
}

/// Panels that are packed already, over some steps, from the first wanted one on.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'a, T> {
    panels: &'a [T],
    width: usize,
    steps: [usize; 2],
}

impl<'a, T: GemmScalar> Ahead<'a, T> {
    /// Some steps of panel `j`.
    pub fn stretch(&self, j: usize, steps: &Range<usize>) -> &'a [T] {
        let ([first, end], panel) = (self.steps, |steps| Micro::<T>::panel(self.width, steps));
        &self.panels[j * panel(end - first) + (steps.start - first) * self.width..][..panel(steps.len())]
    }
}

impl Columns {
    fn panels<T: GemmScalar>(&self, kernel: &Kernel<T>) -> usize {
        self.cols.len().div_ceil(kernel.cols())
    }

    /// Elements of a panel.
    fn panel<T: GemmScalar>(&self, kernel: &Kernel<T>) -> usize {
        Micro::<T>::panel(kernel.cols(), self.steps.len())
    }

    /// Their panels from column `first` of them on, the first of a panel.
    pub fn ahead<'a, T: GemmScalar>(&self, kernel: &Kernel<T>, packed: &'a [T], first: usize) -> Option<Ahead<'a, T>> {
        let panels = &packed[self.at? + first / kernel.cols() * self.panel(kernel)..];
        Some(Ahead { panels, width: kernel.cols(), steps: [self.steps.start, self.steps.end] })
    }
}

/// The turns of a call, which pack as many bytes at a time. `tiles` is how it is cut if nothing is packed ahead, and `cut`
/// cuts what is.
pub(super) fn turns<T: GemmScalar, C: Target<T>>(
    kernel: &Kernel<T>,
    products: &[Product<T::Real, C>],
    tiles: Vec<Tile>,
    cut: impl Fn(&[Size]) -> Vec<Tile>,
    bytes: usize,
) -> Vec<Turn> {
    let mut grids = vec![[0; 2]; products.len()];
    for tile in &tiles {
        grids[tile.product][0] += usize::from(tile.cols.start == 0);
        grids[tile.product][1] += usize::from(tile.rows.start == 0);
    }
    let room = bytes / size_of::<T>();
    let (mut turns, mut end) = (vec![vec![]], 0);
    for (product, (p, grid)) in products.iter().zip(grids).enumerate() {
        let (n, k) = (p.size.n, p.size.k);
        let all = Columns { product, cols: 0..n, steps: 0..k, at: None };
        let [width, steps] = at_a_time(kernel, C::EXACT, [n, k], room);
        if !pays(kernel, &p.size, grid, n.div_ceil(width)) {
            turns[0].push(all);
            continue;
        }
        let parts = pieces(0..n, width).flat_map(|cols| pieces(0..k, steps).map(move |steps| (cols.clone(), steps)));
        for (i, (cols, steps)) in parts.enumerate() {
            let mut part = Columns { cols, steps, ..all.clone() };
            let elements = part.panels(kernel) * part.panel(kernel);
            // Steps of the same columns are added one after another.
            if end > 0 && (i > 0 || end + elements > room) {
                turns.push(vec![]);
                end = 0;
            }
            part.at = Some(end);
            turns.last_mut().expect("there is one").push(part);
            end += elements;
        }
    }
    if end == 0 {
        return vec![Turn { columns: turns.remove(0), tiles }];
    }
    let size = |columns: &Columns| {
        let mut size = Size { n: columns.cols.len(), k: columns.steps.len(), ..products[columns.product].size };
        if columns.at.is_some() {
            size.packing[1] = moving(kernel, READING);
        }
        size
    };
    let turn = |columns: Vec<Columns>| Turn { tiles: cut(&columns.iter().map(size).collect::<Vec<_>>()), columns };
    turns.into_iter().map(turn).collect()
}

/// How many of n columns, and over how many of k steps, are packed at a time, if there is room for so many elements: over all
/// steps where sums of some cannot wait in C, and else all columns, because then no row is packed twice.
fn at_a_time<T: GemmScalar>(kernel: &Kernel<T>, exact: bool, [n, k]: [usize; 2], room: usize) -> [usize; 2] {
    let (cols, lanes) = (kernel.cols(), n.next_multiple_of(kernel.cols()).max(1));
    if exact && lanes * T::BLOCK <= room {
        return [lanes, room / lanes / T::BLOCK * T::BLOCK];
    }
    [(room / Micro::<T>::panel(1, k).max(1) / cols).max(1) * cols, k.max(1)]
}

/// Cost of moving an element to or from memory.
fn moving<T: GemmScalar>(kernel: &Kernel<T>, byte: f64) -> f64 {
    byte * kernel.speed * size_of::<T>() as f64
}

/// Whether packing a product's columns ahead, in so many parts, takes less time than packing them for each of a grid's rows.
fn pays<T: GemmScalar>(kernel: &Kernel<T>, size: &Size, grid: [usize; 2], parts: usize) -> bool {
    let [m, n, down, across, parts] = [size.m, size.n, grid[0], grid[1], parts].map(|x| x as f64);
    let [rows, columns] = size.packing;
    let detour = moving(kernel, WRITING) + down * moving(kernel, READING);
    down > 1.0 && rows * m * (across - parts) + n * (columns * (down - 1.0) - detour) > 0.0
}

/// Packs the columns of one turn, if any, panel after panel.
pub(super) fn pack<T: GemmScalar, C: Target<T>>(
    pool: &Pool,
    kernel: &Kernel<T>,
    products: &[Product<T::Real, C>],
    turn: &Turn,
) -> Option<Scratch<Line>> {
    let ahead = || turn.columns.iter().filter(|columns| columns.at.is_some());
    let elements: usize = ahead().map(|columns| columns.panels(kernel) * columns.panel(kernel)).sum();
    if elements == 0 {
        return None;
    }
    let mut packed = Scratch::new(&MEMORY, (elements * size_of::<T>()).div_ceil(size_of::<Line>()));
    let mut rest: &mut [T] = bytemuck::cast_slice_mut(packed.slice());
    for columns in ahead() {
        let (count, side) = (columns.panels(kernel), &products[columns.product].lanes);
        let (own, tail) = rest.split_at_mut(count * columns.panel(kernel));
        rest = tail;
        let piece = count.div_ceil(4 * pool.threads()).min(AT_ONCE);
        bands(pool, count, piece, (own,), |band, (panels,)| {
            let [start, end] = [band.start, band.end].map(|i| columns.cols.start + i * kernel.cols());
            kernel.pack_columns(side, start..end.min(columns.cols.end), columns.steps.clone(), panels);
        });
    }
    Some(packed)
}
