//! Cross entropy over the vocabulary, with its gradient written over the logits: they are the largest tensor of a
//! small model, and nobody needs them afterwards.

use super::bands::{bands, piece};
use super::{Pool, Real};
use crate::IGNORE;

/// Loss of every row in nats; with `scale` the logits become `scale·(softmax − onehot)`.
pub(crate) fn cross_entropy<R: Real>(
    pool: &Pool,
    vocabulary: usize,
    scale: Option<f64>,
    targets: &[u32],
    logits: &mut [R],
    losses: &mut [R],
) {
    if vocabulary == 0 {
        return losses.fill(R::ZERO);
    }
    bands(pool, targets.len(), piece(vocabulary), (logits, losses), |at, (logits, losses)| {
        for ((&target, x), loss) in targets[at].iter().zip(logits.chunks_exact_mut(vocabulary)).zip(losses) {
            if target == IGNORE {
                *loss = R::ZERO;
                if scale.is_some() {
                    x.fill(R::ZERO);
                }
                continue;
            }
            let max = x.iter().fold(R::NEG_INFINITY, |m, &v| if v > m { v } else { m });
            let at_target = x[target as usize] - max;
            x.iter_mut().for_each(|v| *v = (*v - max).exp());
            let total = super::real::sum(x.len(), |i| x[i]);
            *loss = total.ln() - at_target;
            if let Some(scale) = scale {
                let scale = R::of(scale);
                let c = scale / total;
                x.iter_mut().for_each(|v| *v *= c);
                x[target as usize] -= scale;
            }
        }
    });
}
