//! The moments in a file: one tensor per Hugging Face tensor and moment, so that they outlive the layout of memory.
//!
//! | name | what |
//! |---|---|
//! | `exp_avg.NAME`, `exp_avg_sq.NAME` | AdamW's moments of tensor NAME |
//! | `momentum_buffer.NAME` | Muon's momentum |

use super::{Optimizer, Place, Rule};
use memmap2::Mmap;
use safetensors::SafeTensors;
use std::fs::File;
use std::path::{Path, PathBuf};
use wudao_device::{DType, Device, View};
use wudao_model::weights::{Listed, Snapshot};

/// A file of moments that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system refused.
    #[error("{}: cannot read the optimizer's state", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is damaged, or of another model or optimizer.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

fn file_type(dtype: DType) -> safetensors::Dtype {
    match dtype {
        DType::F32 => safetensors::Dtype::F32,
        DType::F64 => safetensors::Dtype::F64,
        DType::Bf16 => safetensors::Dtype::BF16,
        DType::U32 => safetensors::Dtype::U32,
        DType::I8 => safetensors::Dtype::I8,
    }
}

/// The names of a tensor's moments: the first, and AdamW's second.
fn names(place: &Place, rule: Rule) -> (String, Option<String>) {
    match rule {
        Rule::AdamW { .. } => (format!("exp_avg.{}", place.name), Some(format!("exp_avg_sq.{}", place.name))),
        Rule::Muon => (format!("momentum_buffer.{}", place.name), None),
    }
}

impl<D: Device> Optimizer<D> {
    /// All moments that this rank answers for: the dense part's on the first rank, and its experts'.
    pub fn listed<'a>(&'a self, device: &'a D) -> Vec<Listed<'a>> {
        let first = self.first.trainable();
        let mut tensors = vec![];
        for place in self.places.iter().filter(|p| p.stretch > 0 || self.first.layout().shard.rank == 0) {
            let mut list = |name: String, from: View<'a, D>| {
                tensors.push(Listed::of_view(device, name, place.shape.clone(), from));
            };
            let piece = &self.pieces[place.piece];
            let (name, second_name) = names(place, piece.rule);
            let flat = [1, place.at.len()];
            list(name, first[place.stretch].part(place.at.clone(), flat));
            if let (Rule::AdamW { second, .. }, Some(name)) = (piece.rule, second_name) {
                let at = place.at.start - piece.at.start..place.at.end - piece.at.start;
                list(name, self.second[second].view().part(at, flat));
            }
        }
        tensors
    }

    /// A copy of them on the host.
    pub fn snapshot(&self, device: &D) -> Snapshot {
        Snapshot::take(self.listed(device))
    }

    /// Fills all moments from a file that a snapshot wrote, after `updates` updates. Nothing is changed unless every
    /// moment is there in its shape and type.
    pub fn load(&mut self, device: &D, path: &Path, updates: u64) -> Result<(), StateError> {
        let io = |source| StateError::Io { path: path.into(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the mapping is read-only and the file, once under its name, is never written again; any bytes are
        // valid, and every access is checked against the length of the mapping.
        let bytes = unsafe { Mmap::map(&file) }.map_err(io)?;
        self.parse(device, &bytes, path, updates)
    }

    /// As [`Optimizer::load`], from the bytes of a file; `path` is only for the messages. Any bytes will do.
    pub fn parse(&mut self, device: &D, bytes: &[u8], path: &Path, updates: u64) -> Result<(), StateError> {
        let wrong = |problem: String| StateError::File { path: path.into(), problem };
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| wrong(format!("not a safetensors file: {e}")))?;
        let dtype = self.first.dtype();
        let find = |place: &Place, name: &str| {
            let t = tensors.tensor(name).map_err(|_| {
                wrong(format!("tensor {name:?} is missing: it is the state of another model or optimizer"))
            })?;
            if t.shape() != place.shape || t.dtype() != file_type(dtype) {
                let (shape, found, expected) = (t.shape(), t.dtype(), &place.shape);
                return Err(wrong(format!("tensor {name:?} is {found:?} {shape:?}, not {dtype:?} {expected:?}")));
            }
            Ok(t)
        };
        let mut found = vec![];
        for place in &self.places {
            let (first, second) = names(place, self.pieces[place.piece].rule);
            let second = second.map(|name| find(place, &name)).transpose()?;
            found.push((find(place, &first)?, second));
        }
        let mut first = self.first.trainable_mut();
        for (place, (m, v)) in self.places.iter().zip(found) {
            let (piece, flat) = (&self.pieces[place.piece], [1, place.at.len()]);
            device.copy_from_host(m.data(), first[place.stretch].reborrow().part(place.at.clone(), flat));
            if let (Rule::AdamW { second, .. }, Some(v)) = (piece.rule, v) {
                let at = place.at.start - piece.at.start..place.at.end - piece.at.start;
                device.copy_from_host(v.data(), self.second[second].view_mut().part(at, flat));
            }
        }
        self.updates = updates;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::Rates;
    use crate::settings::{Moments, OptimizerKind, TrainSettings};
    use crate::testing::{tiny_moe, tiny_settings};
    use proptest::prelude::*;
    use wudao_device::{Cpu, DType};
    use wudao_model::Model;
    use wudao_model::model::Options;
    use wudao_model::weights::write_tensors;

    #[test]
    fn moments_come_back_bit_for_bit_and_other_models_are_refused() {
        let (cpu, dir) = (Cpu::new(1), tempfile::tempdir().unwrap());
        let kinds = [OptimizerKind::AdamW, OptimizerKind::Muon];
        for (kind, moments) in kinds.into_iter().flat_map(|kind| [(kind, Moments::F32), (kind, Moments::Bf16)]) {
            let settings = TrainSettings { optimizer: kind, moments, ..tiny_settings() };
            let model = Model::new(&cpu, &tiny_moe(), 8, Options::default()).unwrap();
            let mut weights = model.init(&cpu, 1);
            let grads = model.init(&cpu, 2);
            let mut optimizer = Optimizer::new(&cpu, model.layout(), DType::F32, &settings);
            for _ in 0..2 {
                optimizer.step(&cpu, &grads, &mut weights, Rates { lr: 0.1, muon_lr: 0.1 }, 1.0);
            }
            let path = dir.path().join(format!("{kind:?}-{moments:?}.safetensors"));
            let snapshot = optimizer.snapshot(&cpu);
            write_tensors(&path, &snapshot.listed()).unwrap();
            let mut again = Optimizer::new(&cpu, model.layout(), DType::F32, &settings);
            again.load(&cpu, &path, 2).unwrap();
            assert!(again.snapshot(&cpu) == snapshot);
            assert_eq!(again.updates(), 2);
            assert!(snapshot.tensors.iter().any(|t| t.bytes.iter().any(|&b| b != 0)));

            let size = moments.kept(DType::F32).size() as u64;
            let bytes: u64 = snapshot.bytes() + 2 * size * correction_elements(&model);
            assert!(optimizer.bytes() <= bytes, "memory for what no rule needs");

            let other = TrainSettings {
                optimizer: if kind == OptimizerKind::Muon { OptimizerKind::AdamW } else { OptimizerKind::Muon },
                ..settings
            };
            let mut other = Optimizer::new(&cpu, model.layout(), DType::F32, &other);
            assert!(other.load(&cpu, &path, 2).unwrap_err().to_string().contains("missing"));
            let moments = if moments == Moments::F32 { Moments::Bf16 } else { Moments::F32 };
            let other = TrainSettings { optimizer: kind, moments, ..tiny_settings() };
            let mut other = Optimizer::new(&cpu, model.layout(), DType::F32, &other);
            assert!(other.load(&cpu, &path, 2).unwrap_err().to_string().to_lowercase().contains("bf16"));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Damage is an error or, in the numbers, unseen (checksums see it); it is never a panic, and what is refused
        /// changes nothing.
        #[test]
        fn damaged_files_never_panic(flips in prop::collection::vec((0usize..3000, 1u8..=255), 0..4), keep in 0.0..1.2f64) {
            let cpu = Cpu::new(1);
            let model = Model::new(&cpu, &tiny_moe(), 8, Options::default()).unwrap();
            let mut optimizer = Optimizer::new(&cpu, model.layout(), DType::F32, &tiny_settings());
            let before = optimizer.snapshot(&cpu);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("optimizer.safetensors");
            write_tensors(&path, &before.listed()).unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.truncate((bytes.len() as f64 * keep) as usize);
            for (at, flip) in flips {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= flip;
                }
            }
            if optimizer.parse(&cpu, &bytes, &path, 5).is_err() {
                prop_assert!(optimizer.snapshot(&cpu) == before && optimizer.updates() == 0);
            }
        }
    }

    fn correction_elements(model: &Model<Cpu>) -> u64 {
        (model.layout().dense_len() - model.layout().trainable()) as u64
    }
}
