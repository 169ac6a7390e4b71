//! Cross entropy over the vocabulary, with its gradient written over the logits: they are the largest tensor of a
//! small model, and nobody needs them afterwards. Logits of fewer bits are widened row by row, in a cache.

use super::bands::{bands, piece};
use super::memory::{Memory, Scratch};
use super::simd::{fold, join, max, sum, versions};
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
        let max = max(x);
        let at_target = x[target] - max;
        x.iter_mut().for_each(|x| *x = (*x - max).exp::<S>());
        let total = sum(x);
        let c = scale / total;
        x.iter_mut().for_each(|x| *x *= c);
        x[target] -= scale;
        total.ln() - at_target
    }
}

versions! {
    fn widen<A: Stored; S>(x: &[A], wide: &mut [A::Real]) {
        wide.iter_mut().zip(x).for_each(|(wide, x)| *wide = x.widen());
    }
}

versions! {
    fn narrow<A: Stored; S>(wide: &[A::Real], x: &mut [A]) {
        x.iter_mut().zip(wide).for_each(|(x, &wide)| *x = A::narrow(wide));
    }
}

/// Loss of every row in nats; with `scale` the gradient `scale·(softmax − onehot)` goes over the logits.
pub(crate) fn cross_entropy<A: Stored>(
    pool: &Pool,
    memory: &Memory,
    vocabulary: usize,
    scale: Option<f64>,
    targets: &[u32],
    logits: &mut [A],
    losses: &mut [A::Real],
) {
    let zero = A::Real::ZERO;
    if vocabulary == 0 {
        return losses.fill(zero);
    }
    let few_bits = size_of::<A>() < size_of::<A::Real>();
    bands(pool, targets.len(), piece(vocabulary), (logits, losses), |at, (logits, losses)| {
        let mut room = Scratch::<A::Real>::new(memory, if few_bits { vocabulary } else { 0 });
        for ((&target, x), loss) in targets[at].iter().zip(logits.chunks_exact_mut(vocabulary)).zip(losses) {
            *loss = zero;
            if target == IGNORE {
                if scale.is_some() {
                    x.fill(A::zeroed());
                }
                continue;
            }
            let wide = if few_bits {
                widen(x, room.slice());
                room.slice()
            } else {
                bytemuck::cast_slice_mut(x)
            };
            match scale {
                None => *loss = row_loss(wide, target as usize),
                Some(scale) => {
                    *loss = row_gradient(wide, target as usize, A::Real::of(scale));
                    if few_bits {
                        narrow(room.get(), x);
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use crate::check::{Random, assert_close, assert_gradient};
    use crate::cpu::testing::{cpu, down, fresh, up};
    use crate::{DType, Device, IGNORE, Tensor};
    use half::bf16;
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
                cpu.cross_entropy(scale, &targets, logits.view_mut(), losses.view_mut());
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
        cpu.cross_entropy(Some(0.5), &targets, logits.view_mut(), losses.view_mut());
        let loss = |x: &[f64]| {
            cpu.cross_entropy(None, &targets, up(&cpu, [t, v], x).view_mut(), losses.view_mut());
            0.5 * down(&cpu, &losses).iter().sum::<f64>()
        };
        assert_gradient("cross_entropy", loss, &x, &down(&cpu, &logits));
    }

    /// Logits of fewer bits are computed with in more: the loss is that of the same numbers, the gradient rounded once.
    #[test]
    fn logits_of_fewer_bits() {
        let (cpu, (t, v)) = (cpu(), (3, 40));
        let x: Vec<f32> = Random(8).values(t * v).into_iter().map(|x| bf16::from_f64(3.0 * x).to_f32()).collect();
        let targets = [3, IGNORE, 39];
        let run = |dtype| {
            let (wide, mut losses) = (Tensor::from_host(&cpu, [t, v], &x), Tensor::new(&cpu, [t, 1], DType::F32));
            let mut logits = Tensor::new(&cpu, [t, v], dtype);
            cpu.copy(wide.view(), logits.view_mut());
            cpu.cross_entropy(None, &targets, Tensor::copy_of(&cpu, logits.view()).view_mut(), losses.view_mut());
            let alone = losses.view().to_f64(&cpu);
            cpu.cross_entropy(Some(0.5), &targets, logits.view_mut(), losses.view_mut());
            assert_close("loss", "cross_entropy", DType::F32, &alone, &losses.view().to_f64(&cpu));
            (losses.view().to_f64(&cpu), logits.view().to_f64(&cpu))
        };
        let ((loss, gradient), (few_loss, few_gradient)) = (run(DType::F32), run(DType::Bf16));
        assert_eq!(loss, few_loss);
        assert_close("gradient", "cross_entropy", DType::Bf16, &gradient, &few_gradient);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let cpu = cpu();
        let (mut logits, mut losses) = (up(&cpu, [1, 3], &[1e5, 1e5, -1e5]), fresh(&cpu, [1, 1]));
        cpu.cross_entropy(Some(1.0), &[1], logits.view_mut(), losses.view_mut());
        assert_close("loss", "cross_entropy", DType::F64, &[2f64.ln()], &down(&cpu, &losses));
        assert_close("gradient", "cross_entropy", DType::F64, &[0.5, -0.5, 0.0], &down(&cpu, &logits));
    }

    #[test]
    #[should_panic(expected = "beyond the vocabulary")]
    fn a_target_beyond_the_vocabulary_is_refused() {
        let cpu = cpu();
        cpu.cross_entropy(None, &[3], up(&cpu, [1, 3], &[0.0; 3]).view_mut(), fresh(&cpu, [1, 1]).view_mut());
    }
}
