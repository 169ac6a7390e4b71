//! Where the time goes: seconds by kernel.
//!
//! Every kernel of [`Cpu`](super::Cpu) adds the time between its entry and its return to one counter. Kernels of one
//! device run one after the other, so the counters add up to the time spent in kernels, and what is missing to the clock on
//! the wall is the program around them. Two looks at the clock and one addition cost about 50 ns a kernel, a
//! thousandth of the shortest ones of a training step: it is always on.
//!
//! A kernel that calls another through the device is not listed, or the inner time would count twice. What is not here:
//! why a kernel was called. Muon is made of matrix products, and they count as such.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// What a kernel's time is reported under.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// Matrix products but the experts'.
    Gemm,
    /// The experts' matrix products.
    Experts,
    /// Attention.
    Attention,
    /// Cross entropy.
    Loss,
    /// Norms, rotations, activations, and the movement of rows and elements.
    Elementwise,
    /// Scores and choices of the routers.
    Routing,
    /// The update, and the norm of the gradient before it.
    Optimizer,
}

impl Part {
    /// Every part.
    pub const ALL: [Part; 7] =
        [Part::Gemm, Part::Experts, Part::Attention, Part::Loss, Part::Elementwise, Part::Routing, Part::Optimizer];

    /// Its name in a report.
    pub fn name(self) -> &'static str {
        match self {
            Part::Gemm => "gemm",
            Part::Experts => "experts",
            Part::Attention => "attention",
            Part::Loss => "loss",
            Part::Elementwise => "elementwise",
            Part::Routing => "routing",
            Part::Optimizer => "optimizer",
        }
    }
}

/// Every kernel that is timed, under the name of its method.
const KERNELS: [(&str, Part); 31] = [
    ("fill", Part::Elementwise),
    ("copy", Part::Elementwise),
    ("axpby", Part::Elementwise),
    ("sum_of_squares", Part::Optimizer),
    ("column_sums", Part::Elementwise),
    ("gemm", Part::Gemm),
    ("gemm_bands", Part::Experts),
    ("gemm_bands_outer", Part::Experts),
    ("gemm_packed", Part::Gemm),
    ("gemm_packed_bands", Part::Experts),
    ("gather", Part::Elementwise),
    ("gather_backward", Part::Elementwise),
    ("gather_sum", Part::Elementwise),
    ("add_bias", Part::Elementwise),
    ("rms_norm", Part::Elementwise),
    ("rms_norm_backward", Part::Elementwise),
    ("qk_norm", Part::Elementwise),
    ("qk_norm_backward", Part::Elementwise),
    ("rope", Part::Elementwise),
    ("attention", Part::Attention),
    ("attention_backward", Part::Attention),
    ("attention_cached", Part::Attention),
    ("attention_paged", Part::Attention),
    ("swiglu", Part::Elementwise),
    ("swiglu_backward", Part::Elementwise),
    ("route", Part::Routing),
    ("route_backward", Part::Routing),
    ("cross_entropy", Part::Loss),
    ("nesterov", Part::Optimizer),
    ("adamw", Part::Optimizer),
    ("transfer", Part::Elementwise),
];

/// The number of a kernel. It is evaluated by the compiler: a name that is not in the table does not build.
pub(super) const fn kernel(name: &str) -> usize {
    let mut i = 0;
    while i < KERNELS.len() {
        let (known, name) = (KERNELS[i].0.as_bytes(), name.as_bytes());
        let mut same = known.len() == name.len();
        let mut at = 0;
        while same && at < name.len() {
            same = known[at] == name[at];
            at += 1;
        }
        if same {
            return i;
        }
        i += 1;
    }
    panic!("no kernel of this name is timed")
}

/// Times the method that it stands first in, until it returns.
macro_rules! timed {
    ($cpu:expr, $kernel:ident) => {
        let _timer = $cpu.meter.start(const { $crate::cpu::meter::kernel(stringify!($kernel)) });
    };
}
pub(super) use timed;

/// The counters of a device.
#[derive(Default, Debug)]
pub struct Meter {
    nanoseconds: [AtomicU64; KERNELS.len()],
}

impl Meter {
    /// Counts for the kernel of this number until the result is dropped.
    pub(super) fn start(&self, kernel: usize) -> Timer<'_> {
        Timer { counter: &self.nanoseconds[kernel], begin: Instant::now() }
    }

    /// What was counted since the device was made.
    pub fn read(&self) -> Reading {
        Reading { nanoseconds: self.nanoseconds.each_ref().map(|n| n.load(Relaxed)) }
    }
}

/// A kernel on its way.
pub(super) struct Timer<'a> {
    counter: &'a AtomicU64,
    begin: Instant,
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        self.counter.fetch_add(self.begin.elapsed().as_nanos() as u64, Relaxed);
    }
}

/// The counters at one moment, or between two.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reading {
    nanoseconds: [u64; KERNELS.len()],
}

impl Reading {
    /// What was counted after an earlier reading of the same device.
    pub fn since(&self, earlier: &Reading) -> Reading {
        Reading { nanoseconds: std::array::from_fn(|i| self.nanoseconds[i] - earlier.nanoseconds[i]) }
    }

    /// Name, part and seconds of every kernel that ran.
    pub fn kernels(&self) -> impl Iterator<Item = (&'static str, Part, f64)> {
        let all = KERNELS.iter().zip(&self.nanoseconds).filter(|&(_, &n)| n > 0);
        all.map(|(&(name, part), &n)| (name, part, 1e-9 * n as f64))
    }

    /// Seconds of every part.
    pub fn parts(&self) -> [(Part, f64); Part::ALL.len()] {
        Part::ALL.map(|part| (part, self.kernels().filter(|k| k.1 == part).map(|k| k.2).sum()))
    }

    /// Seconds of all kernels.
    pub fn total(&self) -> f64 {
        self.kernels().map(|k| k.2).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, DType, Device, Gemm, Tensor};

    /// Time is counted once, under the part that it belongs to, and adds up to less than the clock on the wall.
    #[test]
    fn kernels_count_under_their_part_and_only_once() {
        let cpu = Cpu::new(2);
        let new = |shape| Tensor::zeros(&cpu, shape, DType::F32);
        let (a, b, mut c, mut db) = (new([300, 200]), new([250, 200]), new([300, 250]), new([1, 250]));
        let (before, begin) = (cpu.meter().read(), Instant::now());
        cpu.gemm(Gemm::NT, a.view(), b.view(), c.view_mut());
        cpu.gemm_bands(Gemm::NT, std::slice::from_ref(&(0..300)), a.view(), &[b.view().into()], c.view_mut());
        cpu.add_bias_backward(c.view(), db.view_mut());
        let wall = begin.elapsed().as_secs_f64();
        let found = cpu.meter().read().since(&before);
        let names: Vec<_> = found.kernels().map(|(name, ..)| name).collect();
        assert_eq!(names, ["column_sums", "gemm", "gemm_bands"]);
        let at_work = |(_, seconds): &(Part, f64)| *seconds > 0.0;
        let parts: Vec<Part> = found.parts().iter().filter(|p| at_work(p)).map(|p| p.0).collect();
        assert_eq!(parts, [Part::Gemm, Part::Experts, Part::Elementwise]);
        assert!(found.total() > 0.0 && found.total() <= wall, "{} of {wall} s", found.total());
    }

    #[test]
    fn names_are_unique_and_found() {
        for (i, (name, _)) in KERNELS.iter().enumerate() {
            assert_eq!(kernel(name), i);
        }
        let mut names: Vec<_> = Part::ALL.map(Part::name).into();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Part::ALL.len());
    }
}
