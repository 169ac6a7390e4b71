//! Micro-kernels: a few rows of activations by one panel of weights, over all of k.
//!
//! All give the same bits: see the order of additions in the module above. The sum of a block is of integers, so
//! there it does not matter in which order or with which instruction a kernel adds.

use super::format::QuantKind;
use super::pack::{self, LANES, Layout};
use super::rows::RowBlock;

/// Sums of one row.
pub(super) type Lanes = [f32; LANES];

/// Multiplies a group of interleaved rows by a panel: kind, layout of the panel, its address, the rows' blocks and the
/// sums, one for each row.
pub(super) type MicroKernel = unsafe fn(QuantKind, Layout, *const u8, &[RowBlock], &mut [Lanes]);

/// A micro-kernel.
pub(in crate::cpu) struct Kernel {
    /// The instructions that it multiplies with.
    pub name: &'static str,
    /// Whether this machine has the instructions.
    supported: fn() -> bool,
    /// Most rows of a group.
    pub rows: usize,
    tile: MicroKernel,
}

impl Kernel {
    /// Best first; the last one works on any machine.
    const ALL: &'static [Kernel] = &[
        #[cfg(target_arch = "x86_64")]
        Kernel { name: "amx_int8", supported: super::amx::supported, rows: super::amx::ROWS, tile: super::amx::tile },
        #[cfg(target_arch = "x86_64")]
        Kernel {
            name: "avx512_vnni",
            supported: || {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vnni")
            },
            rows: super::x86::vnni::ROWS,
            tile: super::x86::vnni::tile,
        },
        #[cfg(target_arch = "x86_64")]
        Kernel {
            name: "avx2",
            supported: || {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            },
            rows: super::x86::avx2::ROWS,
            tile: super::x86::avx2::tile,
        },
        Kernel { name: "portable", supported: || true, rows: 4, tile: portable },
    ];

    /// Those that run on this machine.
    pub fn all() -> impl Iterator<Item = &'static Kernel> {
        Self::ALL.iter().filter(|k| (k.supported)())
    }

    /// The best one for this machine.
    pub fn best() -> &'static Kernel {
        Self::all().next().expect("the portable kernel is always supported")
    }

    /// `sums[r] = Σ_k x[r, k]·w[lane, k]` for a group of rows and a panel.
    pub(super) fn tile(&self, kind: QuantKind, layout: Layout, panel: &[u8], rows: &[RowBlock], sums: &mut [Lanes]) {
        assert!((1..=self.rows).contains(&sums.len()) && rows.len() == layout.blocks * sums.len(), "a group of rows");
        assert!(layout == Layout::new(kind, layout.blocks) && panel.len() >= layout.bytes, "a panel");
        assert!(panel.as_ptr().addr().is_multiple_of(64), "panels begin at cache lines");
        // SAFETY: only supported kernels are handed out; the panel and the rows have just been checked.
        unsafe { (self.tile)(kind, layout, panel.as_ptr(), rows, sums) }
    }
}

/// For any machine. Fused multiply-adds are part of the result: where they are a call into a library, there is one for 32
/// products.
unsafe fn portable(kind: QuantKind, layout: Layout, panel: *const u8, rows: &[RowBlock], sums: &mut [Lanes]) {
    // SAFETY: the caller passes a whole panel.
    let panel = unsafe { std::slice::from_raw_parts(panel, layout.bytes) };
    sums.fill([0.0; LANES]);
    for (b, rows) in rows.chunks_exact(sums.len()).enumerate() {
        for lane in 0..LANES {
            let ([d, m], codes) = pack::unpack(kind, layout, panel, b, lane);
            for (row, sums) in rows.iter().zip(&mut *sums) {
                let products = codes.iter().zip(&row.codes).map(|(&q, &a)| i32::from(q) * i32::from(a));
                let dot = row.less(kind) + products.sum::<i32>();
                let sum = (dot as f32 * row.scale).mul_add(d, sums[lane]);
                sums[lane] = if kind.has_min() { row.sum.mul_add(m, sum) } else { sum };
            }
        }
    }
}
