//! Every form, shape, type and kernel against a plain sum in f64; bits against the number of threads, the rows of a call
//! and the way a product is turned.

mod common;

use super::*;
use crate::cpu::Pool;
use crate::cpu::lines::AWAY;
use bytemuck::Zeroable;
use common::*;
use half::bf16;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn small_products_are_right(g in form(), m in 0usize..40, n in 0usize..80, k in 0usize..40, seed: u32) {
        with_all!(one_product(g, [m, n, k], seed.into()));
    }

    #[test]
    fn widening_changes_no_bit(g in form(), m in 1usize..40, n in 1usize..80, k in prop_oneof![0usize..40, 1000usize..2600], seed: u32) {
        widened::<bf16, bf16, f32>(g, [m, n, k], seed.into());
        widened::<bf16, f32, bf16>(g, [m, n, k], seed.into());
        widened::<f32, bf16, f32>(g, [m, n, k], seed.into());
    }

    #[test]
    fn long_sums_are_right(g in form(), m in 1usize..9, n in 1usize..40, k in 500usize..2600, seed: u32) {
        with_all!(one_product(g, [m, n, k], seed.into()));
    }

    #[test]
    fn bands_equal_products_of_their_own(
        lens in prop::collection::vec(prop_oneof![Just(0usize), Just(1), 0usize..90], 0..6),
        tb: bool, accumulate: bool, n in 1usize..70, k in 0usize..600, seed: u32,
    ) {
        let g = Gemm { ta: false, tb, accumulate, ..Gemm::NN };
        bands::<F32>(g, &lens, [n, k], seed.into());
        bands::<Pairs>(g, &lens, [n, k], seed.into());
        bands::<Rounded>(g, &lens, [n, k], seed.into());
        bands::<Widened>(g, &lens, [n, k], seed.into());
        bands::<InParts>(g, &lens, [n, k], seed.into());
    }

    #[test]
    fn outer_bands_equal_products_of_their_own(
        lens in prop::collection::vec(prop_oneof![Just(0usize), Just(1), 0usize..900], 0..5),
        accumulate: bool, m in 1usize..40, n in 1usize..70, seed: u32,
    ) {
        let g = Gemm::TN.adding(accumulate);
        outer_bands::<F32>(g, &lens, [m, n], seed.into());
        outer_bands::<Pairs>(g, &lens, [m, n], seed.into());
        outer_bands::<Widened>(g, &lens, [m, n], seed.into());
        outer_bands::<InParts>(g, &lens, [m, n], seed.into());
    }
}

/// Large enough that every thread gets several rectangles, in every form.
#[test]
fn large_products_have_the_same_bits_on_any_number_of_threads() {
    for ta in [false, true] {
        for tb in [false, true] {
            one_product::<F32>(Gemm { ta, tb, accumulate: ta, ..Gemm::NN }, [151, 103, 700], 7);
            one_product::<Rounded>(Gemm { ta, tb, accumulate: tb, ..Gemm::NN }, [151, 103, 1300], 7);
            one_product::<InParts>(Gemm { ta, tb, accumulate: tb, ..Gemm::NN }, [151, 103, 1300], 7);
        }
    }
    one_product::<F64>(Gemm::NT, [151, 103, 700], 8);
    one_product::<Widened>(Gemm::TN, [151, 103, 1301], 8);
    one_product::<InParts>(Gemm::NN, [40, 330, 1300], 9);
    one_product::<Rounded>(Gemm::NN, [40, 330, 1300], 9);
}

/// A row of C has the same bits whether it is computed alone, among a few others, or among many.
#[test]
fn a_row_does_not_depend_on_its_company() {
    fn rows_alone<Y: Types>(k: usize) {
        let (m, n) = (75, 67);
        let (a, b) = (Matrix::<Y::A>::random(1, m, k, false), Matrix::<Y::B>::random(2, k, n, true));
        let pool = Pool::new(2);
        for kernel in supported::<Y::T>() {
            let run = |rows: Range<usize>| {
                let mut c = vec![Y::C::zeroed(); rows.len() * n];
                let a = a.band(rows.clone());
                let product = Product::new(Gemm::NT, a.mat(), b.mat(), MatMut::new(&mut c, rows.len(), n));
                multiply(&pool, kernel, false, &mut [product]);
                c
            };
            let all = run(0..m);
            for count in [1, 2, 3, 5, 8, 13, 14, 17, 40] {
                for first in [0, 1, 30, m - count] {
                    let same = bits(&run(first..first + count)) == bits(&all[first * n..(first + count) * n]);
                    assert!(same, "{}: rows {first}..{}", kernel.name, first + count);
                }
            }
        }
    }
    with_all!(rows_alone(1100));
}

/// Operands that are rounded on their way give the bits of operands that were rounded before, in every form and kernel.
#[test]
fn rounding_on_the_way_is_rounding_before() {
    let [m, n, k] = [37, 71, 1101];
    for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
        let g = Gemm { ta, tb, ..Gemm::NN };
        let (a, b) = (Matrix::<f32>::random(1, m, k, ta), Matrix::<f32>::random(2, k, n, tb));
        let rounded = |&Matrix { ref data, rows, cols, transposed }: &Matrix<f32>| {
            let data = data.iter().map(|&x| bf16::narrow(x)).collect();
            Matrix { data, rows, cols, transposed }
        };
        let (a_rounded, b_rounded) = (rounded(&a), rounded(&b));
        for kernel in supported::<bf16>() {
            let multiply = |a: Mat<f32>, b: Mat<f32>| {
                let mut c = vec![0f32; m * n];
                multiply(&Pool::new(2), kernel, false, &mut [Product::new(g, a, b, MatMut::new(&mut c, m, n))]);
                c
            };
            let expected = multiply(a_rounded.mat(), b_rounded.mat());
            assert!(bits(&multiply(a.mat(), b_rounded.mat())) == bits(&expected), "{}: A, {g:?}", kernel.name);
            assert!(bits(&multiply(a_rounded.mat(), b.mat())) == bits(&expected), "{}: B, {g:?}", kernel.name);
        }
    }
}

/// All kernels with a fused multiply-add agree to the bit, hence so do machines. In bf16 the portable one does too, since
/// products are exact; but a matrix unit has an order of its own.
#[test]
fn kernels_agree() {
    fn agree<Y: Types>(portable: bool) {
        let (m, n, k) = (33, 71, 2063);
        let (a, b) = (Matrix::<Y::A>::random(3, m, k, false), Matrix::<Y::B>::random(4, k, n, true));
        let results = supported::<Y::T>();
        let results = results.filter(|k| k.name != "amx_bf16" && (portable || k.name != "portable"));
        let mut results = results.map(|kernel| {
            let mut c = vec![Y::C::zeroed(); m * n];
            let product = Product::new(Gemm::NT, a.mat(), b.mat(), MatMut::new(&mut c, m, n));
            multiply(&Pool::new(1), kernel, false, &mut [product]);
            c
        });
        if let Some(first) = results.next() {
            assert!(results.all(|c| bits(&c) == bits(&first)));
        }
    }
    agree::<F32>(false);
    agree::<F64>(false);
    agree::<(f32, bf16, f32, bf16)>(false);
    agree::<Pairs>(true);
    agree::<Rounded>(true);
    agree::<Widened>(true);
}

/// NaN in what C held before an assignment, or in the padding of a panel, must not leak.
#[test]
fn an_assigned_result_forgets_what_was_there() {
    let (a, b) = (vec![1f32; 3 * 5], vec![2f32; 5 * 7]);
    for (k, value) in [(5, 10.0), (0, 0.0)] {
        let mut c = vec![f32::NAN; 3 * 7];
        let (a, b) = (Mat::new(Data::Real(&a[..3 * k]), 3, k), Mat::new(Data::Real(&b[..k * 7]), k, 7));
        gemm::<f32, f32>(&Pool::new(2), Gemm::NN, a, b, MatMut::new(&mut c, 3, 7));
        assert_eq!(c, vec![value; 3 * 7]);
    }
}

/// NaN next to the last of an odd number of steps is not part of a pair; and what is not a number stays so when rounded.
#[test]
fn odd_steps_end_alone_and_nan_stays() {
    let a = [1.0, 2.0, 3.0, f32::NAN, 5.0, 6.0].map(bf16::from_f32);
    let b = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0].map(bf16::from_f32);
    let mut c = [bf16::ZERO; 4];
    let (a, b) = (Mat::new(Data::Bf16(&a), 2, 3), Mat::new(Data::Bf16(&b), 3, 2));
    gemm::<bf16, bf16>(&Pool::new(1), Gemm::NN, a, b, MatMut::new(&mut c, 2, 2));
    assert_eq!(c[..2].iter().map(|c| c.to_f32()).collect::<Vec<_>>(), [1.0, 5.0]);
    assert!(c[2].is_nan() && c[3].is_nan());
}

#[test]
#[should_panic(expected = "inner size")]
fn shapes_that_do_not_fit_panic() {
    let x = Mat::new(Data::Real(&[0f32; 6]), 2, 3);
    gemm::<f32, f32>(&Pool::new(1), Gemm::NN, x, x, MatMut::new(&mut [0.0; 6], 2, 3));
}

/// The micro-kernel by itself, with operands of either type and either way round, and part of a panel.
#[test]
fn micro_kernels_multiply_what_was_packed() {
    fn products<T: Source<Real: Source + Number> + Number, X: Source<Real = T::Real> + Number>()
    where
        T::Real: Target<T>,
    {
        let (m, k, skip) = (25, 33, 6);
        for (micro, n) in Micro::<T>::all().flat_map(|micro| [(micro, 7), (micro, micro.cols())]) {
            let (a, b): (Vec<X>, Vec<T>) = (random(5, k * m), random(6, n * k));
            let before: Vec<T::Real> = random(7, m * n);
            let panel = Micro::<T>::panel(micro.rows(), k);
            let mut a_panels = vec![T::zeroed(); m.div_ceil(micro.rows()) * panel];
            let mut b_panel = vec![T::zeroed(); Micro::<T>::panel(micro.cols(), k)];
            micro.pack_rows(Operand { data: &a, pitch: m, lanes_adjacent: true }, 0..m, 0..k, &mut a_panels);
            micro.pack_cols(Operand { data: &b, pitch: k, lanes_adjacent: false }, 0..n, 0..k, &mut b_panel);
            let mut c = before.clone();
            let (a_rest, b_rest) = (Left { panels: &a_panels, steps: k, first: skip }, &b_panel[micro.cols() * skip..]);
            micro.multiply([m, n, k - skip], a_rest, b_rest, &mut c, n, true);
            let data = a[skip * m..].iter().map(|&x| T::of(x.into())).collect();
            let a = Matrix::<T> { data, rows: m, cols: k - skip, transposed: true };
            let data = b.chunks(k).flat_map(|row| row[skip..].to_vec()).collect();
            let b = Matrix::<T> { data, rows: k - skip, cols: n, transposed: true };
            check::<(T, T, T, T::Real)>(&a, &b, Some(&before), &c, "micro-kernel");
        }
    }
    products::<f32, f32>();
    products::<f32, bf16>();
    products::<f64, f64>();
    products::<bf16, bf16>();
    products::<bf16, f32>();
}

/// Panels of every kernel, wherever they begin and end: elements rounded where they must be, zeros where there are none.
#[test]
fn panels_hold_what_the_operand_has() {
    /// Lanes and steps of an operand of 40 × 70.
    const SIZE: [usize; 2] = [40, 70];
    fn panel<T: GemmScalar<Real = f32>, X: Source<Real = f32>>(
        x: &[X],
        adjacent: bool,
        width: usize,
        lanes: Range<usize>,
        steps: Range<usize>,
    ) -> Vec<T> {
        let mut panel = vec![T::zeroed(); width * steps.len().next_multiple_of(T::GROUP)];
        for (l, lane) in lanes.enumerate() {
            for (s, step) in steps.clone().enumerate() {
                let s = if T::SECOND_FIRST && s ^ 1 < steps.len() { s ^ 1 } else { s };
                let x = x[if adjacent { step * SIZE[0] + lane } else { lane * SIZE[1] + step }];
                panel[(s / T::GROUP * width + l) * T::GROUP + s % T::GROUP] = T::narrow(x.widen());
            }
        }
        panel
    }
    /// A panel of so many elements that `pack` makes, and nothing beside it.
    fn inside<T: GemmScalar<Real = f32>>(len: usize, pack: impl FnOnce(&mut [T])) -> Vec<T> {
        const BESIDE: usize = 64;
        let mut all = vec![T::narrow(7.0); len + 2 * BESIDE];
        pack(&mut all[BESIDE..BESIDE + len]);
        let beside = all[..BESIDE].iter().chain(&all[BESIDE + len..]);
        assert!(beside.into_iter().all(|x| x.widen() == 7.0), "elements beside a panel");
        all[BESIDE..BESIDE + len].to_vec()
    }
    fn panels<T, B, X>(kernels: &[Kernel<T, B>])
    where
        T: GemmScalar<Real = f32>,
        B: GemmScalar<Real = f32>,
        X: Source<Real = f32> + Number,
    {
        let mut x: Vec<X> = random(8, SIZE[0] * SIZE[1]);
        x[SIZE[1] + 7] = X::of(f64::NAN);
        x[2 * SIZE[1] + 1] = X::of(f64::NEG_INFINITY);
        for kernel in kernels.iter().filter(|k| (k.supported)() && k.rows_adjacent) {
            for adjacent in [false, true] {
                let [rows, pitch] = if adjacent { [SIZE[1], SIZE[0]] } else { SIZE };
                let ahead = if pitch == SIZE[1] { 8 * pitch } else { 0 };
                let side = Side { data: X::data(&x), pitch, rows, lanes_adjacent: adjacent, ahead };
                for steps in [0..70, 0..64, 2..67, 4..5, 6..23, 0..8, 53..70] {
                    for first in [0, 3, 24, 31, 33, 34, 36, 39] {
                        let lanes = |width: usize| first..(first + width).min(SIZE[0]);
                        let [m, n] = kernel.size;
                        let rows = inside(m * steps.len().next_multiple_of(T::GROUP), |panel: &mut [T]| {
                            kernel.pack_rows(&side, lanes(m), steps.clone(), panel);
                        });
                        let columns = inside(n * steps.len().next_multiple_of(B::GROUP), |panel: &mut [B]| {
                            kernel.pack_cols(&side, lanes(n), steps.clone(), panel);
                        });
                        let wanted = panel::<T, X>(&x, adjacent, m, lanes(m), steps.clone());
                        assert!(bits(&rows) == bits(&wanted), "{} rows {:?} {steps:?}", kernel.name, lanes(m));
                        let wanted = panel::<B, X>(&x, adjacent, n, lanes(n), steps.clone());
                        assert!(bits(&columns) == bits(&wanted), "{} columns {:?} {steps:?}", kernel.name, lanes(n));
                    }
                }
            }
        }
    }
    panels::<f32, f32, f32>(f32::KERNELS);
    panels::<f32, f32, bf16>(f32::KERNELS);
    panels::<bf16, bf16, bf16>(bf16::KERNELS);
    panels::<bf16, bf16, f32>(bf16::KERNELS);
    panels::<Wide, Wide, bf16>(Wide::KERNELS);
    panels::<Wide, Wide, f32>(Wide::KERNELS);
    panels::<Wide, bf16, bf16>(Wide::BY_PAIRS);
    panels::<Wide, bf16, f32>(Wide::BY_PAIRS);
}

/// Panels of rows are pieces, but of fifteen to seventeen rows of fourteen, for instance, two panels have half each.
#[test]
fn the_last_panels_share_rows() {
    fn shared<T: GemmScalar, B: GemmScalar<Real = T::Real>>(kernels: &[Kernel<T, B>]) {
        for kernel in kernels {
            for n in 0..100 {
                let panels: Vec<_> = kernel.row_panels(5..5 + n).collect();
                assert!(panels.iter().cloned().flatten().eq(5..5 + n), "{} {n}", kernel.name);
                let (most, left) = (kernel.rows(), n % kernel.rows());
                if kernel.rows_adjacent && most > 8 && n > most && (1..4).contains(&left) {
                    let [.., a, b] = &panels[..] else { panic!("two panels") };
                    assert_eq!([a.len(), b.len()], [(most + left).div_ceil(2), (most + left) / 2], "{n}");
                    assert!(panels[..panels.len() - 2].iter().all(|rows| rows.len() == most));
                } else {
                    assert!(panels.into_iter().eq(pieces(5..5 + n, most)), "{} {n}", kernel.name);
                }
            }
        }
    }
    shared(f32::KERNELS);
    shared(bf16::KERNELS);
    shared(Wide::KERNELS);
    shared(Wide::BY_PAIRS);
    shared(Thirds::KERNELS);
}

/// Rows widened and columns in pairs make the bits of pairs on both sides.
#[test]
fn columns_may_be_widened_in_registers() {
    for kernel in Wide::BY_PAIRS.iter().filter(|k| (k.supported)()) {
        let sizes = (1..=kernel.rows()).flat_map(|m| [1, 7, 16, kernel.cols()].map(|n| [m, n]));
        for ([m, n], k) in sizes.zip((2..).step_by(2)) {
            let (a, b) = (Matrix::<bf16>::random(1, m, k, false), Matrix::<bf16>::random(2, k, n, true));
            let before: Vec<f32> = random(3, m * n);
            let (mut c, g) = (before.clone(), Gemm { accumulate: true, ..Gemm::NT });
            let p = Product::new(g, a.mat(), b.mat(), MatMut::new(&mut c, m, n));
            let mut rows = vec![Wide::zeroed(); kernel.rows() * k];
            let mut columns = vec![bf16::ZERO; kernel.cols() * k];
            kernel.pack_rows(&p.rows, 0..m, 0..k, &mut rows);
            kernel.pack_cols(&p.lanes, 0..n, 0..k, &mut columns);
            // SAFETY: C has so many rows and columns.
            unsafe {
                kernel.tile(
                    [m, n, k],
                    kernel.packed(&rows, k, 0),
                    kernel.panel(&columns),
                    p.c.as_mut_ptr(),
                    n,
                    true,
                    Coming::NONE,
                )
            }
            let expected = portable::<bf16, f32>(g, [a.mat(), b.mat()], before);
            assert!(bits(&c) == bits(&expected), "{} {m}×{n}×{k}", kernel.name);
        }
    }
}

/// A result that is too large for the caches is the same as its parts, which are not, whichever way they were written.
#[test]
fn large_results_are_those_of_their_bands() {
    fn large<A: Source<Real = f32> + Number, T: GemmScalar<Real = f32>, C: Target<T> + Number>([m, n, k]: [usize; 3]) {
        let (a, b) = (Matrix::<A>::random(1, m, k, false).small(), Matrix::<f32>::random(2, k, n, true));
        product::<A, T, C>([m, n, k], &a, &b);
    }
    fn product<A: Source<Real = f32> + Number, T: GemmScalar<Real = f32>, C: Target<T> + Number>(
        [m, n, k]: [usize; 3],
        a: &Matrix<A>,
        b: &Matrix<f32>,
    ) {
        assert!(m * n * size_of::<C>() >= AWAY, "a large result");
        for kernel in supported::<T>().filter(|k| C::away(k)) {
            let mut parts: Vec<C> = vec![C::zeroed(); m * n];
            const ROWS: usize = 320;
            for (i, part) in parts.chunks_mut(ROWS * n).enumerate() {
                let band = a.band(i * ROWS..i * ROWS + part.len() / n);
                let part = MatMut::new(part, band.rows, n);
                multiply(&Pool::new(1), kernel, false, &mut [Product::new(Gemm::NT, band.mat(), b.mat(), part)]);
            }
            // Whole lines are written only where they begin as lines do.
            let mut room: Vec<C> = vec![C::zeroed(); m * n + 64];
            let first = room.as_ptr().align_offset(64);
            for at in [first, first + 1] {
                let whole = &mut room[at..at + m * n];
                let g = Gemm::NT.measured(true);
                let products = &mut [Product::new(g, a.mat(), b.mat(), MatMut::new(whole, m, n))];
                multiply(&Pool::new(3), kernel, false, products);
                check_squares::<_, _, T>(&products[0], "past the caches");
                assert!(bits(whole) == bits(&parts), "{} {m}×{n}, {k}", kernel.name);
            }
        }
    }
    large::<bf16, bf16, f32>([1500, 1440, 40]);
    large::<bf16, bf16, f32>([1500, 1456, 300]);
    large::<bf16, bf16, f32>([1500, 1440, 1100]);
    large::<bf16, bf16, bf16>([3000, 1440, 40]);
    large::<bf16, bf16, bf16>([3000, 1440, 1100]);
    large::<f32, f32, f32>([1500, 1440, 40]);
    large::<f32, f32, f32>([1500, 1440, 600]);
    large::<f32, f32, bf16>([3000, 1440, 40]);
    large::<f32, f32, bf16>([3000, 1440, 600]);
    large::<bf16, Wide, f32>([1500, 1440, 1000]);
    large::<bf16, Wide, f32>([1500, 1440, 1100]);
    large::<f32, Thirds, f32>([1500, 1440, 40]);
    large::<f32, Thirds, f32>([1500, 1440, 600]);
    large::<f32, Thirds, bf16>([3000, 1440, 600]);
    // Squares that are too large to be added eight at a time.
    let (a, b) = (vec![0.15 / 40.0; 1500 * 40], vec![1.0; 40 * 1440]);
    let a = Matrix { data: a, rows: 1500, cols: 40, transposed: false };
    product::<f32, f32, f32>([1500, 1440, 40], &a, &Matrix { data: b, rows: 40, cols: 1440, transposed: true });
}

/// Results of all bands count together: each of these alone would stay in the caches.
#[test]
fn results_of_all_bands_count_together() {
    let (size, [m, n]) = (size_of::<f32>(), [768, 600]);
    assert!(m * n * size < AWAY && 6 * m * n * size >= AWAY);
    outer_bands::<F32>(Gemm { accumulate: false, ..Gemm::TN_ACC }, &[5, 0, 9, 33, 1, 7], [m, n], 1);
    let (lens, n) = ([1000, 0, 1300, 900], 704);
    assert!(lens.iter().all(|rows| rows * n * size < AWAY) && lens.iter().sum::<usize>() * n * size >= AWAY);
    bands::<F32>(Gemm::NT, &lens, [n, 40], 2);
}

/// Few columns, or rows when they are turned, met by many rows that are read where they are: with sums of one block and of several.
#[test]
fn rows_that_pass_few_columns_are_right() {
    for [m, n, k] in [[1, 700, 96], [16, 1200, 512], [40, 520, 500], [66, 300, 1100], [300, 70, 700]] {
        one_product::<F32>(Gemm::NT, [m, n, k], 3);
        one_product::<F32>(Gemm { accumulate: true, ..Gemm::NT }, [m, n, k], 4);
        one_product::<(f32, f32, f32, bf16)>(Gemm::NT, [m, n, k], 5);
        bands::<F32>(Gemm::NT, &[m, 3, 0, m], [n, k], 6);
    }
}

/// Few rows may meet columns that are packed in another way: they have the bits that they have among many, of weights that are
/// almost nothing, too.
#[test]
fn few_rows_are_those_among_many() {
    fn first_rows<B: Source<Real = f32> + Number>([n, k]: [usize; 2], g: Gemm, scale: [f64; 2]) {
        let (mut a, mut b) = (Matrix::<f32>::random(1, 100, k, false), Matrix::<B>::random(2, k, n, g.tb));
        a.data.iter_mut().for_each(|x| *x *= scale[0] as f32);
        b.data.iter_mut().for_each(|x| *x = B::of((*x).into() * scale[1]));
        let rows = |m: usize| {
            let (mut c, a) = (vec![0.0f32; m * n], a.band(0..m));
            gemm::<Wide, f32>(&Pool::new(2), g, a.mat(), b.mat(), MatMut::new(&mut c, m, n));
            c
        };
        let many = rows(100);
        for m in [1, 13, 16, 40, 70] {
            assert!(bits(&rows(m)) == bits(&many[..m * n]), "{m} rows, {n}, {k}");
        }
    }
    for [n, k] in [[70, 96], [512, 700], [64, 2100], [33, 77]] {
        for g in [Gemm::NT, Gemm::NN] {
            first_rows::<bf16>([n, k], g, [1.0, 1.0]);
            first_rows::<f32>([n, k], g, [1.0, 1.0]);
            first_rows::<f32>([n, k], g, [1e30, 1e-38]);
        }
    }
}

/// Columns that few rows meet where they are, the last of them in a panel all the same; with more rows all are packed, and so
/// they are where lines would compete.
#[test]
fn columns_in_place_are_right() {
    fn in_place(kernel: &Kernel<f32>, [m, n, k]: [usize; 3]) -> bool {
        let (a, b) = (Matrix::<f32>::random(1, m, k, false), Matrix::<f32>::random(2, k, n, false));
        let mut c = vec![0.0; m * n];
        let mut p = Product::new(Gemm::NN, a.mat(), b.mat(), MatMut::new(&mut c, m, n));
        p.plan(kernel, Call::new(false, 0));
        !p.turned && p.cols_in_place(kernel)
    }
    for kernel in supported::<f32>() {
        let few = FEW;
        assert_eq!(in_place(kernel, [few, 112, 50]), kernel.cols_in_place, "{}", kernel.name);
        for shape in [[few + 1, 112, 50], [few, 100, 50], [few, 1024, 50], [few, kernel.lanes(), 50]] {
            assert!(!in_place(kernel, shape), "{} {shape:?}", kernel.name);
        }
    }
    for [m, n, k] in
        [[1, 112, 7], [16, 208, 600], [30, 496, 1100], [70, 96, 40], [71, 96, 40], [16, 100, 20], [16, 1024, 20]]
    {
        one_product::<F32>(Gemm::NN, [m, n, k], 3);
        one_product::<F32>(Gemm { accumulate: true, ..Gemm::NN }, [m, n, k], 4);
        one_product::<F32>(Gemm::TN, [m, n, k], 5);
        one_product::<(f32, f32, f32, bf16)>(Gemm::NN, [m, n, k], 6);
        bands::<F32>(Gemm::NN, &[m, 3, 0, m], [n, k], 7);
    }
}

/// Three parts are the number, as long as the last one is not below the smallest that the unit knows.
#[test]
fn an_f32_is_the_sum_of_its_parts() {
    let mut state = 1u64;
    for _ in 0..1_000_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = f32::from_bits((state >> 32) as u32);
        if (1e-32..3.38e38).contains(&x.abs()) {
            assert_eq!(Thirds::narrow(x).widen().to_bits(), x.to_bits(), "{x:e}");
        }
    }
}

/// Products in parts are as near to the exact ones as multiply-adds in f32 are, on average and at worst, for sums short and
/// long, with and without cancellation, and for numbers of very different sizes. (Without a unit nothing is multiplied so, and
/// the portable kernel rounds every product: there is nothing to compare.)
#[test]
fn products_in_parts_are_as_good_as_those_of_multiply_adds() {
    if !Thirds::pay() {
        println!("skipped: this machine has no matrix unit");
        return;
    }
    fn errors<T: GemmScalar<Real = f32>>(a: &Matrix<f32>, b: &Matrix<f32>) -> [f64; 2]
    where
        f32: Target<T>,
    {
        let (m, n, k) = (a.rows, b.cols, a.cols);
        let mut c = vec![0f32; m * n];
        gemm::<T, f32>(&Pool::new(2), Gemm::NN, a.mat(), b.mat(), MatMut::new(&mut c, m, n));
        let errors = c.iter().enumerate().map(|(at, &c)| {
            let products = (0..k).map(|p| a.at(at / n, p) * b.at(p, at % n));
            let (sum, size) = products.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
            (f64::from(c) - sum).abs() / size
        });
        let errors: Vec<f64> = errors.collect();
        [errors.iter().sum::<f64>() / errors.len() as f64, errors.into_iter().fold(0.0, f64::max)]
    }
    for k in [1, 2, 7, 32, 100, 512, 3000] {
        for (positive, spread) in [(false, 0), (true, 0), (false, 12)] {
            let shaped = |mut x: Matrix<f32>| {
                for (i, x) in x.data.iter_mut().enumerate() {
                    *x = if positive { x.abs() } else { *x }
                        * ((i * 7 % (2 * spread + 1)) as f32 - spread as f32).exp2();
                }
                x
            };
            let (a, b) = (shaped(Matrix::random(1, 67, k, false)), shaped(Matrix::random(2, k, 45, false)));
            let (chained, parts) = (errors::<f32>(&a, &b), errors::<Thirds>(&a, &b));
            for (parts, chained) in parts.into_iter().zip(chained) {
                assert!(parts <= 1.1 * chained + 1e-8, "{k} steps: off by {parts:e}, multiply-adds by {chained:e}");
            }
        }
    }
}
