//! Initial weights: normal with the configuration's standard deviation, outputs to the residual stream smaller by
//! `1/√(2L)` (Radford et al. 2019), gains 1, biases 0.
//!
//! Every tensor has a random stream of its own, made from the seed and its name, so that a model begins the same
//! whatever the ranks, the order or the neighbours of its parameters.

use crate::config::Config;
use crate::packed::Incoming;
use crate::store::{Kind, Param, Part, Store};
use wudao_device::{Coding, DType, Device, Tensor, ViewMut};

/// SplitMix64 (Steele et al. 2014).
struct Stream(u64);

impl Stream {
    fn new(seed: u64, name: &str) -> Self {
        // FNV-1a over the name, then mixed with the seed.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3));
        let mut s = Stream(seed ^ hash.rotate_left(32));
        s.next();
        s
    }
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in (0, 1].
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
    /// Two independent standard normals (Box & Muller 1958).
    fn normals(&mut self) -> [f64; 2] {
        let (r, angle) = ((-2.0 * self.uniform().ln()).sqrt(), std::f64::consts::TAU * self.uniform());
        [r * angle.cos(), r * angle.sin()]
    }
}

/// Numbers that are drawn at a time, about. A whole table of embeddings would be twice as large again in f64.
const PIECE: usize = 1 << 18;

/// What a parameter begins with.
enum Beginning {
    /// Everywhere the same.
    Constant(f64),
    /// Normal, with this deviation.
    Normal(f64),
}

fn beginning(config: &Config, kind: Kind) -> Beginning {
    match kind {
        Kind::Matrix | Kind::Expansion | Kind::Embedding | Kind::Head | Kind::Router => {
            Beginning::Normal(config.initializer_range)
        }
        Kind::Output => Beginning::Normal(config.initializer_range / (2.0 * config.num_hidden_layers as f64).sqrt()),
        Kind::Norm => Beginning::Constant(1.0),
        Kind::Bias | Kind::Correction => Beginning::Constant(0.0),
    }
}

/// The stream of standard normals that a tensor's name and the seed make.
pub(crate) fn normals(seed: u64, name: &str) -> impl Iterator<Item = f64> {
    let mut stream = Stream::new(seed, name);
    std::iter::repeat_with(move || stream.normals()).flatten()
}

/// Fills `weights` with initial values.
pub(crate) fn init<D: Device>(device: &D, config: &Config, seed: u64, weights: &mut Store<D>) {
    for (home, param) in weights.params() {
        let std = match beginning(config, param.kind) {
            Beginning::Normal(std) => std,
            Beginning::Constant(c) => {
                device.fill(c, weights.get_mut(home));
                continue;
            }
        };
        for part in &param.parts {
            let mut values = normals(seed, &part.name).map(|x| x * std);
            let cols = param.shape[1];
            let step = PIECE.div_ceil(cols);
            for start in part.rows.clone().step_by(step) {
                let rows = start..part.rows.end.min(start + step);
                let piece: Vec<f64> = values.by_ref().take(rows.len() * cols).collect();
                upload(device, &piece, weights.get_mut(home).rows(rows));
            }
        }
    }
}

/// The same initial values as [`init`]'s, of a tensor that is to be packed.
pub(crate) fn incoming(config: &Config, seed: u64, param: &Param, part: &Part) -> Incoming<'static> {
    let (cols, n) = (param.shape[1], part.rows.len() * param.shape[1]);
    let values: Vec<f32> = match beginning(config, param.kind) {
        Beginning::Normal(std) => normals(seed, &part.name).take(n).map(|x| (x * std) as f32).collect(),
        Beginning::Constant(c) => vec![c as f32; n],
    };
    let row = move |i: usize, coding: Coding| coding.encode(&values[i * cols..(i + 1) * cols]).into();
    Incoming { blocks: None, row: Box::new(row) }
}

/// Host numbers to the device, in the device tensor's type.
pub(crate) fn upload<D: Device>(device: &D, values: &[f64], to: ViewMut<D>) {
    match to.dtype() {
        DType::F64 => device.copy_from_host(bytemuck::cast_slice(values), to),
        _ => {
            let narrow: Vec<f32> = values.iter().map(|&x| x as f32).collect();
            if to.dtype() == DType::F32 {
                device.copy_from_host(bytemuck::cast_slice(&narrow), to);
            } else {
                device.copy(Tensor::from_host(device, to.shape(), &narrow).view(), to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::common::{by_name, families::every_family};
    use crate::model::{Model, Options};
    use wudao_device::Cpu;

    #[test]
    fn weights_begin_as_they_should() {
        let device = Cpu::new(1);
        let (_, mut config) = every_family().swap_remove(6);
        (config.hidden_size, config.initializer_range) = (256, 0.5);
        let weights = by_name(&device, &Model::new(&device, &config, 8, Options::default()).unwrap().init(&device, 9));
        for (name, w) in &weights {
            let n = w.len() as f64;
            let mean = w.iter().sum::<f64>() / n;
            let std = (w.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n).sqrt();
            let (mean_wanted, std_wanted) = match name {
                _ if name.ends_with("norm.weight") => (1.0, 0.0),
                _ if name.ends_with("bias") => (0.0, 0.0),
                // Two layers: 1/√4.
                _ if name.contains("o_proj") || name.contains("down_proj") => (0.0, 0.25),
                _ => (0.0, 0.5),
            };
            // Five standard errors of a normal sample's mean and deviation.
            assert!((mean - mean_wanted).abs() <= 5.0 * std_wanted / n.sqrt(), "{name}: mean {mean}");
            assert!((std - std_wanted).abs() <= 5.0 * std_wanted / (2.0 * n).sqrt(), "{name}: deviation {std}");
        }
        // Every tensor has a stream of its own.
        let mut first: Vec<u64> =
            weights.values().filter(|w| w[0] != 0.0 && w[0] != 1.0).map(|w| w[0].to_bits()).collect();
        let random = first.len();
        first.sort();
        first.dedup();
        assert!(first.len() == random && random > 40, "{random} tensors, {} beginnings", first.len());
    }
}
