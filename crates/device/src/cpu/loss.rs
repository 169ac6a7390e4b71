//! Cross entropy over the vocabulary, with its gradient written over the logits: they are the largest tensor of a
//! small model, and nobody needs them afterwards. A gradient of another type goes to a tensor of its own, in the same
//! pass; the logits then hold the exponentials.

use super::bands::{bands, piece};
use super::simd::{Isa, fold, join, max, sum, versions};
use super::{Pool, Real, Stored};
use crate::IGNORE;

versions! {
    /// Loss of a row; the row is left as it is.
    fn row_loss<R, S>(x: &[R], target: usize) -> R {
        let max = max(x);
        let total = join(fold(x, R::ZERO, |a, x| a + (x - max).exp::<S>()), |a, b| a + b);
        total.ln() - (x[target] - max)
    }

    /// Loss of a row, which is replaced by its gradient.
    fn row_gradient<R, S>(x: &mut [R], target: usize, scale: R) -> R {
        let (loss, c) = exponentials::<R, S>(x, target, scale);
        x.iter_mut().for_each(|x| *x *= c);
        x[target] -= scale;
        loss
    }
}

versions! {
    /// Loss of a row, which is replaced by its exponentials; its gradient goes to `dx`.
    fn row_gradient_aside<A: Stored; S>(x: &mut [A::Real], target: usize, scale: A::Real, dx: &mut [A]) -> A::Real {
        let (loss, c) = exponentials::<A::Real, S>(x, target, scale);
        for (d, &x) in dx.iter_mut().zip(&*x) {
            *d = A::narrow(x * c);
        }
        dx[target] = A::narrow(x[target] * c - scale);
        loss
    }
}

/// Replaces a row by its exponentials; gives its loss, and what makes the exponentials `scale` times the softmax.
#[inline(always)]
fn exponentials<R: Real, S: Isa>(x: &mut [R], target: usize, scale: R) -> (R, R) {
    let max = max(x);
    let at_target = x[target] - max;
    x.iter_mut().for_each(|x| *x = (*x - max).exp::<S>());
    let total = sum(x);
    (total.ln() - at_target, scale / total)
}

/// Loss of every row in nats; with `scale` the gradient `scale·(softmax − onehot)` goes to `dlogits`, else over the
/// logits.
pub(crate) fn cross_entropy<A: Stored>(
    pool: &Pool,
    vocabulary: usize,
    scale: Option<f64>,
    targets: &[u32],
    logits: &mut [A::Real],
    losses: &mut [A::Real],
    dlogits: Option<&mut [A]>,
) {
    let zero = A::Real::ZERO;
    if vocabulary == 0 {
        return losses.fill(zero);
    }
    let aside = dlogits.is_some();
    let outs = (logits, losses, dlogits.unwrap_or_default());
    bands(pool, targets.len(), piece(vocabulary), outs, |at, (logits, losses, dlogits)| {
        let rows = targets[at].iter().zip(logits.chunks_exact_mut(vocabulary)).zip(losses);
        for (i, ((&target, x), loss)) in rows.enumerate() {
            // No elements if the gradient goes over the logits.
            let dx = if aside { &mut dlogits[i * vocabulary..][..vocabulary] } else { &mut [] };
            *loss = match (target, scale.map(A::Real::of)) {
                (IGNORE, None) => zero,
                (IGNORE, Some(_)) => {
                    x.fill(zero);
                    dx.fill(A::narrow(zero));
                    zero
                }
                (target, None) => row_loss(x, target as usize),
                (target, Some(scale)) if aside => row_gradient_aside(x, target as usize, scale, dx),
                (target, Some(scale)) => row_gradient(x, target as usize, scale),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::check::{Random, assert_close, assert_gradient};
    use crate::cpu::testing::{cpu, down, fresh, up};
    use crate::{DType, Device, IGNORE};
    use proptest::prelude::*;

    /// `ln Σ exp` with nothing clever: fine for logits of order one.
    fn plain(row: &[f64], target: u32) -> f64 {
        if target == IGNORE { 0.0 } else { row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[target as usize] }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn losses_match_the_definition(t in 0usize..20, v in 1usize..90, seed: u64) {
            let (cpu, mut r) = (cpu(), Random(seed));
            let x = r.values(t * v);
            let targets: Vec<u32> = (0..t).map(|_| if r.below(4) == 0 { IGNORE } else { r.below(v) as u32 }).collect();
            let expected: Vec<f64> = x.chunks(v).zip(&targets).map(|(x, &y)| plain(x, y)).collect();
            for scale in [None, Some(0.25)] {
                let (mut logits, mut losses) = (up(&cpu, [t, v], &x), fresh(&cpu, [t, 1]));
                cpu.cross_entropy(scale, &targets, logits.view_mut(), losses.view_mut(), None);
                assert_close("losses", "cross_entropy", DType::F64, &expected, &down(&cpu, &losses));
                if scale.is_some() {
                    // Rows of a softmax less a one-hot add to nothing; ignored rows are nothing.
                    for (row, &y) in down(&cpu, &logits).chunks(v).zip(&targets) {
                        assert_close("row sum", "cross_entropy", DType::F64, &[0.0], &[row.iter().sum()]);
                        prop_assert!(y != IGNORE || row.iter().all(|&g| g == 0.0));
                    }
                }
            }
        }
    }

    #[test]
    fn gradient() {
        let (cpu, (t, v)) = (cpu(), (4, 21));
        let x = Random(8).values(t * v);
        let targets = [3, IGNORE, 20, 0];
        let (mut logits, mut losses) = (up(&cpu, [t, v], &x), fresh(&cpu, [t, 1]));
        cpu.cross_entropy(Some(0.5), &targets, logits.view_mut(), losses.view_mut(), None);
        let loss = |x: &[f64]| {
            cpu.cross_entropy(None, &targets, up(&cpu, [t, v], x).view_mut(), losses.view_mut(), None);
            0.5 * down(&cpu, &losses).iter().sum::<f64>()
        };
        assert_gradient("cross_entropy", loss, &x, &down(&cpu, &logits));
    }

    /// The gradient goes where it is sent, whatever was there, and is the one that goes over the logits.
    #[test]
    fn the_gradient_may_go_to_another_tensor() {
        let (cpu, (t, v)) = (cpu(), (3, 40));
        let x = Random(8).values(t * v);
        let targets = [3, IGNORE, 39];
        let (mut over, mut losses) = (up(&cpu, [t, v], &x), fresh(&cpu, [t, 1]));
        cpu.cross_entropy(Some(0.5), &targets, over.view_mut(), losses.view_mut(), None);
        let (mut logits, mut aside) = (up(&cpu, [t, v], &x), fresh(&cpu, [t, v]));
        cpu.cross_entropy(Some(0.5), &targets, logits.view_mut(), losses.view_mut(), Some(aside.view_mut()));
        assert_close("aside", "cross_entropy", DType::F64, &down(&cpu, &over), &down(&cpu, &aside));
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let cpu = cpu();
        let (mut logits, mut losses) = (up(&cpu, [1, 3], &[1e5, 1e5, -1e5]), fresh(&cpu, [1, 1]));
        cpu.cross_entropy(Some(1.0), &[1], logits.view_mut(), losses.view_mut(), None);
        assert_close("loss", "cross_entropy", DType::F64, &[2f64.ln()], &down(&cpu, &losses));
        assert_close("gradient", "cross_entropy", DType::F64, &[0.5, -0.5, 0.0], &down(&cpu, &logits));
    }

    #[test]
    #[should_panic(expected = "beyond the vocabulary")]
    fn a_target_beyond_the_vocabulary_is_refused() {
        let cpu = cpu();
        cpu.cross_entropy(None, &[3], up(&cpu, [1, 3], &[0.0; 3]).view_mut(), fresh(&cpu, [1, 1]).view_mut(), None);
    }
}
