//! Every form, shape and kernel against a plain sum in f64; bits against the number of threads and the rows of a call.

use super::*;
use crate::Element;
use crate::cpu::Pool;
use half::bf16;
use proptest::prelude::*;

trait Number: Element + Into<f64> {
    fn of(x: f64) -> Self;
    const EPSILON: f64;
}
/// A type of operands, the sums of which are numbers too.
trait Operands: GemmScalar<Sum: Number> + Number {}
impl<T: GemmScalar<Sum: Number> + Number> Operands for T {}
impl Number for f32 {
    fn of(x: f64) -> f32 {
        x as f32
    }
    const EPSILON: f64 = f32::EPSILON as f64;
}
impl Number for f64 {
    fn of(x: f64) -> f64 {
        x
    }
    const EPSILON: f64 = f64::EPSILON;
}
impl Number for bf16 {
    fn of(x: f64) -> bf16 {
        bf16::from_f64(x)
    }
    const EPSILON: f64 = 1.0 / 128.0;
}

/// Numbers in (−1, 1) that no two seeds share.
fn random<T: Number>(seed: u64, n: usize) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        T::of((state >> 11) as f64 / (1u64 << 52) as f64 - 1.0)
    };
    (0..n).map(|_| next()).collect()
}

fn supported<T: Operands>() -> impl Iterator<Item = &'static Kernel<T>> {
    T::KERNELS.iter().filter(|k| (k.supported)())
}

/// `|sum − exact|` may be this large: the bound of a sum of k products in any order.
fn bound<T: Number>(k: usize, size: f64) -> f64 {
    (k as f64 + 2.0) * T::EPSILON * size + f64::MIN_POSITIVE
}

fn bits<T: Element>(x: &[T]) -> &[u8] {
    bytemuck::cast_slice(x)
}

fn stored<T>(data: &[T], rows: usize, cols: usize, transposed: bool) -> Mat<'_, T>
where
    T: Copy,
{
    if transposed { Mat::new(data, cols, rows) } else { Mat::new(data, rows, cols) }
}

/// Element (i, j) of op(X).
fn at<T: Number>(x: &Mat<T>, transposed: bool, i: usize, j: usize) -> f64 {
    if transposed { x.data[j * x.cols + i].into() } else { x.data[i * x.cols + j].into() }
}

/// `c − (before + op(A)·op(B))` within the bound of rounding.
fn check<T: Operands>(g: Gemm, a: &Mat<T>, b: &Mat<T>, before: &[T::Sum], c: &[T::Sum], n: usize, what: &str) {
    let k = if g.ta { a.rows } else { a.cols };
    for (at_c, (&c, &before)) in c.iter().zip(before).enumerate() {
        let (i, j) = (at_c / n, at_c % n);
        let (mut sum, mut size) = if g.accumulate { (before.into(), before.into().abs()) } else { (0.0, 0.0) };
        for p in 0..k {
            let x = at(a, g.ta, i, p) * at(b, g.tb, p, j);
            sum += x;
            size += x.abs();
        }
        let c: f64 = c.into();
        assert!((c - sum).abs() <= bound::<T::Sum>(k, size), "{what}: C[{i},{j}] is {c}, should be {sum}");
    }
}

fn one_product<T: Operands>(g: Gemm, [m, n, k]: [usize; 3], seed: u64) {
    let (a, b): (Vec<T>, Vec<T>) = (random(seed, m * k), random(seed + 1, k * n));
    let before: Vec<T::Sum> = random(seed + 2, m * n);
    let (a, b) = (stored(&a, m, k, g.ta), stored(&b, k, n, g.tb));
    let pools = [1, 2, 3, 5].map(Pool::new);
    for kernel in supported::<T>() {
        let mut first: Option<Vec<T::Sum>> = None;
        for pool in &pools {
            let mut c = before.clone();
            let product = Product::new(g, a, b, MatMut::new(&mut c, m, n));
            multiply(pool, kernel, g.accumulate, &mut [product]);
            match &first {
                Some(first) => assert!(bits(first) == bits(&c)),
                None => {
                    check(g, &a, &b, &before, &c, n, kernel.name);
                    first = Some(c);
                }
            }
        }
    }
}

fn form() -> impl Strategy<Value = Gemm> {
    any::<[bool; 3]>().prop_map(|[ta, tb, accumulate]| Gemm { ta, tb, accumulate })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn small_products_are_right(g in form(), m in 0usize..40, n in 0usize..80, k in 0usize..40, seed: u32) {
        one_product::<f32>(g, [m, n, k], seed.into());
        one_product::<f64>(g, [m, n, k], seed.into());
        one_product::<bf16>(g, [m, n, k], seed.into());
    }

    #[test]
    fn long_sums_are_right(g in form(), m in 1usize..9, n in 1usize..40, k in 500usize..1600, seed: u32) {
        one_product::<f32>(g, [m, n, k], seed.into());
        one_product::<f64>(g, [m, n, k], seed.into());
        one_product::<bf16>(g, [m, n, k], seed.into());
    }

    #[test]
    fn bands_equal_products_of_their_own(
        lens in prop::collection::vec(prop_oneof![Just(0usize), Just(1), 0usize..90], 0..6),
        tb: bool, accumulate: bool, n in 1usize..70, k in 1usize..600, seed: u32,
    ) {
        let g = Gemm { ta: false, tb, accumulate };
        let seed = u64::from(seed);
        let (bands, rows) = bands_of(&lens);
        let a: Vec<f32> = random(seed, rows * k);
        let b: Vec<Vec<f32>> = (0..lens.len()).map(|e| random(seed + 9 + e as u64, n * k)).collect();
        let b: Vec<Mat<f32>> = b.iter().map(|b| stored(b, k, n, tb)).collect();
        let a = Mat::new(&a, rows, k);
        let before: Vec<f32> = random(seed + 1, rows * n);

        let mut apart = before.clone();
        for (band, b) in bands.iter().zip(&b) {
            let c = &mut apart[band.start * n..band.end * n];
            let own = c.to_vec();
            gemm(&Pool::new(1), g, a.band(band), *b, MatMut::new(c, band.len(), n));
            check(g, &a.band(band), b, &own, c, n, "one band");
        }
        for threads in [1, 2, 3, 5] {
            let mut c = before.clone();
            gemm_bands(&Pool::new(threads), g, &bands, a, &b, MatMut::new(&mut c, rows, n));
            prop_assert!(c == apart);
        }
    }

    #[test]
    fn outer_bands_equal_products_of_their_own(
        lens in prop::collection::vec(prop_oneof![Just(0usize), Just(1), 0usize..900], 0..5),
        m in 1usize..40, n in 1usize..70, seed: u32,
    ) {
        let seed = u64::from(seed);
        let (bands, rows) = bands_of(&lens);
        let (a, b): (Vec<f32>, Vec<f32>) = (random(seed, rows * m), random(seed + 1, rows * n));
        let (a, b) = (Mat::new(&a, rows, m), Mat::new(&b, rows, n));
        let before: Vec<Vec<f32>> = (0..lens.len()).map(|e| random(seed + 9 + e as u64, m * n)).collect();
        let mut apart = before.clone();
        for ((band, c), before) in bands.iter().zip(&mut apart).zip(&before) {
            gemm(&Pool::new(1), Gemm::TN_ACC, a.band(band), b.band(band), MatMut::new(c, m, n));
            check(Gemm::TN_ACC, &a.band(band), &b.band(band), before, c, n, "one band");
        }
        for threads in [1, 2, 3, 5] {
            let mut c = before.clone();
            let acc_c = c.iter_mut().map(|c| MatMut::new(c, m, n)).collect();
            gemm_bands_outer(&Pool::new(threads), &bands, a, b, acc_c);
            prop_assert!(c == apart);
        }
    }
}

fn bands_of(lens: &[usize]) -> (Vec<Range<usize>>, usize) {
    let mut end = 0;
    let bands = lens.iter().map(|len| {
        end += len;
        end - len..end
    });
    (bands.collect(), end)
}

/// Large enough that every thread gets several rectangles, in every form.
#[test]
fn large_products_have_the_same_bits_on_any_number_of_threads() {
    for ta in [false, true] {
        for tb in [false, true] {
            one_product::<f32>(Gemm { ta, tb, accumulate: ta }, [301, 203, 700], 7);
        }
    }
    one_product::<f64>(Gemm::NT, [301, 203, 700], 8);
}

/// A row of C has the same bits whether it is computed alone, among a few others, or among many.
#[test]
fn a_row_does_not_depend_on_its_company() {
    fn rows_alone<T: Operands>() {
        let (m, n, k) = (75, 67, 1100);
        let (a, b): (Vec<T>, Vec<T>) = (random(1, m * k), random(2, n * k));
        let b = Mat::new(&b, n, k);
        let pool = Pool::new(2);
        for kernel in supported::<T>() {
            let run = |rows: Range<usize>| {
                let mut c = vec![T::Sum::zeroed(); rows.len() * n];
                let a = Mat::new(&a[rows.start * k..rows.end * k], rows.len(), k);
                let product = Product::new(Gemm::NT, a, b, MatMut::new(&mut c, rows.len(), n));
                multiply(&pool, kernel, false, &mut [product]);
                c
            };
            let all = run(0..m);
            for count in [1, 2, 3, 5, 8, 13, 14, 17, 40] {
                for first in [0, 1, 30, m - count] {
                    let some = run(first..first + count);
                    let same = bits(&some) == bits(&all[first * n..(first + count) * n]);
                    assert!(same, "{}: rows {first}..{}", kernel.name, first + count);
                }
            }
        }
    }
    rows_alone::<f32>();
    rows_alone::<f64>();
    rows_alone::<bf16>();
}

/// All kernels with a fused multiply-add agree to the bit, hence so do machines.
#[test]
fn kernels_agree() {
    fn agree<T: Operands>() {
        let (m, n, k) = (33, 71, 1030);
        let (a, b): (Vec<T>, Vec<T>) = (random(3, m * k), random(4, n * k));
        let mut results = supported::<T>().filter(|k| k.name != "portable").map(|kernel| {
            let mut c = vec![T::Sum::zeroed(); m * n];
            let product = Product::new(Gemm::NT, Mat::new(&a, m, k), Mat::new(&b, n, k), MatMut::new(&mut c, m, n));
            multiply(&Pool::new(1), kernel, false, &mut [product]);
            c
        });
        if let Some(first) = results.next() {
            assert!(results.all(|c| bits(&c) == bits(&first)));
        }
    }
    agree::<f32>();
    agree::<f64>();
    agree::<bf16>();
}

/// NaN in what C held before an assignment, or in the padding of a panel, must not leak.
#[test]
fn an_assigned_result_forgets_what_was_there() {
    let (a, b) = (vec![1f32; 3 * 5], vec![2f32; 5 * 7]);
    for (k, value) in [(5, 10.0), (0, 0.0)] {
        let mut c = vec![f32::NAN; 3 * 7];
        gemm(
            &Pool::new(2),
            Gemm::NN,
            Mat::new(&a[..3 * k], 3, k),
            Mat::new(&b[..k * 7], k, 7),
            MatMut::new(&mut c, 3, 7),
        );
        assert_eq!(c, vec![value; 3 * 7]);
    }
}

#[test]
#[should_panic(expected = "inner size")]
fn shapes_that_do_not_fit_panic() {
    let x = [0f32; 6];
    gemm(&Pool::new(1), Gemm::NN, Mat::new(&x, 2, 3), Mat::new(&x, 2, 3), MatMut::new(&mut [0.0; 6], 2, 3));
}

/// The micro-kernel by itself, with operands of either type and either way round, and part of a panel.
#[test]
fn micro_kernels_multiply_what_was_packed() {
    fn products<T: Operands, X: Operands + Source<T>>() {
        let (m, n, k, skip) = (25, 7, 33, 6);
        let (a, b): (Vec<X>, Vec<T>) = (random(5, k * m), random(6, n * k));
        let before: Vec<T::Sum> = random(7, m * n);
        for micro in Micro::<T>::all() {
            let panel = Micro::<T>::panel(micro.rows(), k);
            let mut a_panels = vec![T::zeroed(); m.div_ceil(micro.rows()) * panel];
            let mut b_panel = vec![T::zeroed(); Micro::<T>::panel(micro.cols(), k)];
            micro.pack_rows(Operand { data: &a, pitch: m, lanes_adjacent: true }, 0..m, 0..k, &mut a_panels);
            micro.pack_cols(Operand { data: &b, pitch: k, lanes_adjacent: false }, 0..n, 0..k, &mut b_panel);
            let mut c = before.clone();
            let (a_rest, b_rest) = (&a_panels[micro.rows() * skip..], &b_panel[micro.cols() * skip..]);
            micro.multiply([m, n, k - skip], a_rest, panel, b_rest, &mut c, n, true);
            let rounded: Vec<T> = a[skip * m..].iter().map(|&x| T::of(x.into())).collect();
            let b: Vec<T> = b.chunks(k).flat_map(|row| row[skip..].to_vec()).collect();
            let (a, b) = (Mat::new(&rounded, k - skip, m), Mat::new(&b, n, k - skip));
            check(Gemm { ta: true, tb: true, accumulate: true }, &a, &b, &before, &c, n, "micro-kernel");
        }
    }
    products::<f32, f32>();
    products::<f32, bf16>();
    products::<f64, f64>();
    products::<bf16, bf16>();
    products::<bf16, f32>();
}
