//! Rounding tiles of f32 sums to bf16 operands, on any machine; [`super::softmax`] has a faster way for some.

use super::with_lanes;
use crate::cpu::real::Stored;
use crate::cpu::simd::{Isa, versions};

versions! {
    /// `y = x`, rounded.
    pub(super) fn round<A: Stored; S>(x: &[A::Real], y: &mut [A]) {
        assert_eq!(x.len(), y.len());
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = A::narrow(x));
    }

    /// Rows of `lanes` elements, rounded, two by two with their elements alternating; a last one alone with zeros.
    pub(super) fn pair<A: Stored; S>(lanes: usize, rows: &[A::Real], pairs: &mut [A]) {
        with_lanes!(lanes, pair_of::<A, S>(rows, pairs))
    }
}

#[inline(always)]
fn pair_of<A: Stored, S: Isa, const N: usize>(rows: &[A::Real], pairs: &mut [A]) {
    let (rows, pairs) = (rows.as_chunks::<N>().0, pairs.as_chunks_mut::<2>().0.as_chunks_mut::<N>().0);
    assert_eq!(rows.len().div_ceil(2), pairs.len());
    for (rows, pairs) in rows.chunks(2).zip(pairs) {
        match rows {
            [a, b] => (0..N).for_each(|l| pairs[l] = [A::narrow(a[l]), A::narrow(b[l])]),
            _ => (0..N).for_each(|l| pairs[l] = [A::narrow(rows[0][l]), A::zeroed()]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Random;
    use half::bf16;

    #[test]
    fn pairs_alternate() {
        let mut r = Random(5);
        for lanes in [8, 16, 32] {
            for rows in 1..6usize {
                let x: Vec<f32> = r.values(rows * lanes).iter().map(|&x| x as f32).collect();
                let len = rows.next_multiple_of(2) * lanes;
                let mut y = vec![bf16::ONE; len];
                pair(lanes, &x, &mut y);
                let at = |row: usize, lane: usize| x.get(row * lanes + lane).map_or(bf16::ZERO, |&x| bf16::from_f32(x));
                let expected: Vec<bf16> =
                    (0..len).map(|i| at(i / (2 * lanes) * 2 + i % 2, i % (2 * lanes) / 2)).collect();
                assert_eq!(y, expected);
            }
        }
    }
}
