//! bf16 with AVX-512 and its instructions for bf16: one pass from sums to operands, no score stored in between.
//!
//! The bits are those of the loops, but for numbers below 2⁻¹²⁶, which rounding by instruction takes and gives as zero. A row
//! of 32 lanes is two vectors; two rows are rounded and interleaved at a time, as right operands have them. Blocks across the
//! diagonal have rows that not all lanes see: those have masks, the others are spared them.

use super::super::number::{EXP2, ROUND};
use super::{At, Running, Space};
use crate::cpu::gemm::transpose::interleave;
use half::bf16;
use std::arch::x86_64::*;
use std::mem::transmute;

const LANES: usize = 32;
type Row = [f32; LANES];
/// The lanes of a row that are seen.
type Seen = __mmask32;
const ALL: Seen = !0;

/// Proof that the machine has the instructions, and that blocks have [`LANES`] lanes.
#[derive(Clone, Copy)]
pub(in super::super) struct Wide(());

impl Wide {
    pub fn new(lanes: usize) -> Option<Wide> {
        let have = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16");
        (have && lanes == LANES).then_some(Wide(()))
    }

    /// As [`super::exponentials`], into a right operand.
    pub fn weights(self, at: At<f32>, scores: &[f32], running: &mut Running<f32>, weights: &mut [bf16]) {
        // SAFETY: the machine has the instructions.
        unsafe { weights_of(at, scores.as_chunks().0, running, weights.as_chunks_mut().0) }
    }

    /// As [`super::score_gradients`], into operands.
    pub fn gradients(
        self,
        at: At<f32>,
        statistics: (&[f32], &[f32]),
        (p, ds): (&[f32], &[f32]),
        space: &mut Space<bf16>,
    ) {
        // SAFETY: the machine has the instructions.
        unsafe { gradients_of(at, statistics, (p.as_chunks().0, ds.as_chunks().0), space) }
    }
}

/// The halves of a row.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(row: &Row) -> [__m512; 2] {
    // SAFETY: 32 elements.
    unsafe { [_mm512_loadu_ps(row.as_ptr()), _mm512_loadu_ps(row.as_ptr().add(16))] }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(x: [__m512; 2], row: &mut Row) {
    // SAFETY: 32 elements.
    unsafe {
        _mm512_storeu_ps(row.as_mut_ptr(), x[0]);
        _mm512_storeu_ps(row.as_mut_ptr().add(16), x[1]);
    }
}

/// As `exp2` of bf16's [`super::Number`].
#[inline]
#[target_feature(enable = "avx512f")]
fn exp2(x: __m512) -> __m512 {
    // The second operand where one is NaN.
    let x = _mm512_max_ps(_mm512_set1_ps(-127.0), x);
    let shifted = _mm512_add_ps(x, _mm512_set1_ps(ROUND));
    let r = _mm512_sub_ps(x, _mm512_sub_ps(shifted, _mm512_set1_ps(ROUND)));
    let mut y = _mm512_set1_ps(EXP2[0]);
    for c in &EXP2[1..] {
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(*c));
    }
    let power = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(shifted)));
    _mm512_mul_ps(_mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0)), power)
}

/// Two vectors, rounded, one after the other.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn round(first: __m512, second: __m512) -> __m512i {
    // SAFETY: vectors of one size, of which any bits are valid.
    unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
}

/// Rounds two rows, and writes them with their elements alternating.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pair(one: [__m512; 2], two: [__m512; 2], pairs: &mut [bf16; 2 * LANES]) {
    for half in 0..2 {
        let words = interleave(round(one[half], two[half]));
        // SAFETY: 32 elements of 16 bits each.
        unsafe { _mm512_storeu_ps(pairs.as_mut_ptr().add(half * LANES).cast(), words) }
    }
}

/// Keeps what is seen.
#[inline]
#[target_feature(enable = "avx512f")]
fn only(seen: Seen, x: [__m512; 2]) -> [__m512; 2] {
    if seen == ALL {
        return x;
    }
    [_mm512_maskz_mov_ps(seen as __mmask16, x[0]), _mm512_maskz_mov_ps((seen >> 16) as __mmask16, x[1])]
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn weights_of(at: At<f32>, rows: &[Row], running: &mut Running<f32>, pairs: &mut [[bf16; 2 * LANES]]) {
    // The queries from this key on.
    let seen = |row: usize| ALL.checked_shl((at.key + row).saturating_sub(at.query) as u32).unwrap_or(0);
    // Rows that all lanes see, in whole pairs.
    let plain = ((at.query + 1).saturating_sub(at.key)).min(rows.len()) / 2 * 2;
    let (above, below) = rows.split_at(plain);
    let (pairs_above, pairs_below) = pairs.split_at_mut(plain / 2);

    let lowest = [_mm512_set1_ps(f32::NEG_INFINITY); 2];
    let mut tops = [lowest; 2];
    for two in above.as_chunks::<2>().0 {
        for (top, row) in tops.iter_mut().zip(two) {
            let row = load(row);
            *top = [_mm512_max_ps(row[0], top[0]), _mm512_max_ps(row[1], top[1])];
        }
    }
    let mut top = [_mm512_max_ps(tops[1][0], tops[0][0]), _mm512_max_ps(tops[1][1], tops[0][1])];
    for (i, row) in below.iter().enumerate() {
        let (seen, row) = (seen(plain + i), load(row));
        top = [
            _mm512_mask_max_ps(top[0], seen as __mmask16, row[0], top[0]),
            _mm512_mask_max_ps(top[1], (seen >> 16) as __mmask16, row[1], top[1]),
        ];
    }

    let (scale, old) = (_mm512_set1_ps(at.scale), load(&running.max));
    let larger = |half: usize| _mm512_max_ps(_mm512_mul_ps(top[half], scale), old[half]);
    let max = [larger(0), larger(1)];
    let exponentials = |row: &Row| {
        let row = load(row);
        [0, 1].map(|half| exp2(_mm512_fmsub_ps(row[half], scale, max[half])))
    };
    let mut sum = [_mm512_setzero_ps(); 2];
    let mut add = |x: [__m512; 2]| sum = [_mm512_add_ps(sum[0], x[0]), _mm512_add_ps(sum[1], x[1])];
    for (two, pairs) in above.as_chunks::<2>().0.iter().zip(pairs_above) {
        let [one, two] = [exponentials(&two[0]), exponentials(&two[1])];
        add(one);
        add(two);
        pair(one, two, pairs);
    }
    for (i, (two, pairs)) in below.chunks(2).zip(pairs_below).enumerate() {
        let row = plain + 2 * i;
        let one = only(seen(row), exponentials(&two[0]));
        add(one);
        // A last row is alone.
        let two = two.get(1).map_or([_mm512_setzero_ps(); 2], |two| only(seen(row + 1), exponentials(two)));
        add(two);
        pair(one, two, pairs);
    }

    let factor = [0, 1].map(|half| exp2(_mm512_sub_ps(old[half], max[half])));
    let before = load(&running.sum);
    let sum = [0, 1].map(|half| _mm512_fmadd_ps(before[half], factor[half], sum[half]));
    store(factor, &mut running.factor);
    store(sum, &mut running.sum);
    store(max, &mut running.max);
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn gradients_of(at: At<f32>, (lse, d): (&[f32], &[f32]), (p, ds): (&[Row], &[Row]), space: &mut Space<bf16>) {
    let n = p.len();
    assert!(ds.len() == n && lse.len() == n && d.len() == n);
    let scale = _mm512_set1_ps(at.scale);
    // The keys up to this query.
    let seen = |row: usize| ALL.checked_shr((at.key + LANES).saturating_sub(at.query + row + 1) as u32).unwrap_or(0);
    let gradients = |row: usize| {
        let (lse, d) = (_mm512_set1_ps(lse[row]), _mm512_set1_ps(d[row]));
        let (scores, dp, seen) = (load(&p[row]), load(&ds[row]), seen(row));
        let p = only(seen, [0, 1].map(|half| exp2(_mm512_fmsub_ps(scores[half], scale, lse))));
        let ds = [0, 1].map(|half| _mm512_mul_ps(p[half], _mm512_sub_ps(dp[half], d)));
        (p, ds)
    };
    let rows = space.rows.chunks_mut(2 * space.pitch);
    let (pairs_p, pairs_ds) = (space.p.as_chunks_mut().0, space.ds.as_chunks_mut().0);
    for (i, ((to_p, to_ds), rows)) in pairs_p.iter_mut().zip(pairs_ds).zip(rows).enumerate().take(n.div_ceil(2)) {
        let one = gradients(2 * i);
        // A last row is alone.
        let alone = 2 * i + 1 == n;
        let two = if alone { ([_mm512_setzero_ps(); 2], [_mm512_setzero_ps(); 2]) } else { gradients(2 * i + 1) };
        pair(one.0, two.0, to_p);
        pair(one.1, two.1, to_ds);
        write(one.1, &mut rows[..LANES]);
        if !alone {
            write(two.1, &mut rows[space.pitch..][..LANES]);
        }
    }
}

/// Rounds a row.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn write(x: [__m512; 2], row: &mut [bf16]) {
    assert_eq!(row.len(), LANES);
    // SAFETY: 32 elements of 16 bits.
    unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), round(x[0], x[1])) }
}

#[cfg(test)]
mod tests {
    use super::super::super::round;
    use super::super::{exponentials, score_gradients};
    use super::*;
    use crate::check::Random;

    #[test]
    fn rounding_is_to_the_nearest_even() {
        if Wide::new(LANES).is_none() {
            return;
        }
        let special = [f32::INFINITY, -0.0, f32::NAN, f32::MAX, 1.0 + 0.5f32.powi(8), 1.0 + 3.0 * 0.5f32.powi(8)];
        let mut x: Row = Random(5).values(LANES).iter().map(|&x| x as f32).collect::<Vec<_>>().try_into().unwrap();
        x[..special.len()].copy_from_slice(&special);
        let mut y = [bf16::ONE; LANES];
        // SAFETY: the machine has the instructions.
        unsafe { write(load(&x), &mut y) };
        for (&x, y) in x.iter().zip(y) {
            assert!(y.to_bits() == bf16::from_f32(x).to_bits() || (x.is_nan() && y.is_nan()), "{x}: {y}");
        }
    }

    /// Every place of the diagonal, and every number of rows.
    #[test]
    fn one_pass_gives_the_bits_of_loops() {
        let Some(wide) = Wide::new(LANES) else { return };
        let mut r = Random(3);
        for n in (1..40).chain([128]) {
            for (key, query) in [(0, 0), (0, 100), (64, 64), (64, 60), (60, 64), (64, 40), (64, 79), (3, 4)] {
                let mut values = |n| -> Vec<f32> { r.values(n).iter().map(|&x| 4.0 * x as f32).collect() };
                let at = At { key, query, scale: 0.7 };
                let len = n * LANES;
                let paired = len.next_multiple_of(2 * LANES);

                let (mut scores, mut running, mut one) = (values(len), Running::new(), Running::new());
                let mut expected = vec![bf16::ONE; paired];
                let mut weights = expected.clone();
                if key <= query {
                    for (row, x) in running.max.iter_mut().zip(values(LANES)) {
                        *row = x;
                    }
                    (one.max, running.sum, one.sum) = (running.max, [2.0; LANES], [2.0; LANES]);
                    wide.weights(at, &scores, &mut one, &mut weights);
                    exponentials::<bf16>(LANES, at, &mut scores, &mut running);
                    round::pair(LANES, &scores, &mut expected);
                    assert_eq!(weights, expected, "{n} keys from {key}, queries from {query}");
                    assert_eq!((one.max, one.sum, one.factor), (running.max, running.sum, running.factor));
                }

                let (mut p, mut ds, lse, d) = (values(len), values(len), values(n), values(n));
                let fresh = || (vec![bf16::ONE; paired], vec![bf16::ONE; paired], vec![bf16::ONE; n * 50]);
                let ((mut p_one, mut ds_one, mut rows_one), (mut p_two, mut ds_two, mut rows_two)) = (fresh(), fresh());
                let mut space = Space { p: &mut p_one, ds: &mut ds_one, rows: &mut rows_one, pitch: 50 };
                wide.gradients(at, (&lse, &d), (&p, &ds), &mut space);
                score_gradients::<bf16>(LANES, at, &lse, &d, &mut p, &mut ds);
                round::pair(LANES, &p, &mut p_two);
                round::pair(LANES, &ds, &mut ds_two);
                for (ds, row) in ds.chunks_exact(LANES).zip(rows_two.chunks_mut(50)) {
                    round::round(ds, &mut row[..LANES]);
                }
                assert_eq!(
                    (p_one, ds_one, rows_one),
                    (p_two, ds_two, rows_two),
                    "{n} queries from {query}, keys from {key}"
                );
            }
        }
    }
}
