//! The parameters of a model that only answers: every matrix once, packed for products, in as many bits as it shall have.
//!
//! They arrive a parameter at a time, from a file or from anywhere else ([`Incoming`]), and each is packed before the next
//! is looked at: no second copy of a model is ever in memory. What is not a matrix (gains, biases) stays as it is, and so do
//! routers, which are small and whose choices are all or nothing.
//!
//! With 4 bits the matrix that makes the logits has 8: its errors go straight into the answer. Files of that name commonly
//! keep it in more bits too.

use crate::store::{ExpertPart, Kind, Layout, Param, ParamId, Part, Turn, Weights};
use crate::weights::{ExpertReads, FileExperts, WeightsError};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use wudao_device::{Coding, DType, Device, Fault, Operand, QuantKind, Tensor, View};

/// How weights are kept for inference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WeightOptions {
    /// What activations are: f32 or bf16.
    pub operands: DType,
    /// The coding of matrices. None is that which they have in their file, if they are in blocks there, else the type of
    /// operands.
    pub coding: Option<Coding>,
}

impl WeightOptions {
    /// Weights in the type of operands.
    pub fn plain(operands: DType) -> Self {
        WeightOptions { operands, coding: Some(Coding::plain(operands)) }
    }

    /// Weights in a coding, and the operands that go with it: bf16 for bf16, else f32.
    pub fn coded(coding: Coding) -> Self {
        let operands = if coding == Coding::Bf16 { DType::Bf16 } else { DType::F32 };
        WeightOptions { operands, coding: Some(coding) }
    }

    /// How a matrix is kept whose parts are in these blocks, if all are in blocks.
    fn of(&self, param: &Param, tied: bool, blocks: Option<QuantKind>) -> Coding {
        let plain = Coding::plain(self.operands);
        let few = [QuantKind::Int4, QuantKind::Int4Min].map(Coding::Quant);
        let makes_logits = param.kind == Kind::Head || param.kind == Kind::Embedding && tied;
        let wanted = match self.coding {
            Some(coding) if makes_logits && few.contains(&coding) => Coding::Quant(QuantKind::Int8),
            Some(coding) => coding,
            None => blocks.map_or(plain, Coding::Quant),
        };
        match param.kind {
            Kind::Router => Coding::F32,
            _ if wanted.fits(param.shape[1]) => wanted,
            _ => plain,
        }
    }

    /// The type of a parameter that is not packed.
    fn unpacked(&self, kind: Kind) -> Option<DType> {
        match kind {
            Kind::Norm | Kind::Bias | Kind::Correction => Some(DType::F32),
            Kind::Expansion => Some(self.operands),
            _ => None,
        }
    }

    /// Bytes that a parameter will take whose parts are in these blocks.
    pub(crate) fn bytes<D: Device>(
        &self,
        param: &Param,
        tied: bool,
        blocks: impl IntoIterator<Item = Option<QuantKind>>,
    ) -> usize {
        match self.unpacked(param.kind) {
            Some(dtype) => param.at.len() * dtype.size(),
            None => D::bytes_to_pack(self.of(param, tied, common(blocks)), param.shape),
        }
    }

    /// A matrix of these parts, packed.
    pub(crate) fn pack<D: Device>(&self, device: &D, param: &Param, tied: bool, parts: &[Incoming]) -> D::Packed {
        let coding = self.of(param, tied, common(parts.iter().map(|part| part.blocks)));
        device.pack(coding, param.shape, &|i| row(param, parts, i, coding))
    }
}

/// A tensor on its way into memory.
pub struct Incoming<'a> {
    /// The blocks that its rows lie in already, if they do.
    pub blocks: Option<QuantKind>,
    /// The bytes of row i in any coding: [`Coding::encode`], or as they lie there. Any thread may ask.
    pub row: RowOf<'a>,
}

/// See [`Incoming::row`].
pub type RowOf<'a> = Box<dyn Fn(usize, Coding) -> Cow<'a, [u8]> + Sync + 'a>;

/// A parameter of the dense part.
enum Held<D: Device> {
    Plain(Tensor<D>),
    Matrix(D::Packed),
}

/// Where the experts are.
enum Experts<D: Device> {
    /// By sparse layer and local expert: gate-up, down.
    Memory(Vec<Vec<[D::Packed; 2]>>),
    File(Box<FileExperts<D>>),
}

/// The parameters of a model, packed.
pub struct PackedWeights<D: Device> {
    dense: Vec<Held<D>>,
    experts: Experts<D>,
}

impl<D: Device> PackedWeights<D> {
    /// Packs one parameter after another; `open` finds the tensor of a part.
    pub fn new<'a, E>(
        device: &D,
        layout: &Arc<Layout>,
        options: &WeightOptions,
        mut open: impl FnMut(&Param, &Part) -> Result<Incoming<'a>, E>,
    ) -> Result<Self, E> {
        let dense = Self::dense(device, layout, options, &mut open)?;
        let mut pack = |param: &Param| Ok(options.pack(device, param, false, &opened(param, &mut open)?));
        let mut experts: Vec<Vec<[D::Packed; 2]>> = vec![];
        for (layer, _, [gate_up, down]) in layout.experts() {
            experts.resize_with(layer + 1, Vec::new);
            experts[layer].push([pack(gate_up)?, pack(down)?]);
        }
        Ok(PackedWeights { dense, experts: Experts::Memory(experts) })
    }

    /// Packs all but the experts, which stay where they are.
    pub(crate) fn beside(experts: FileExperts<D>) -> Result<Self, WeightsError> {
        let experts = Box::new(experts);
        let FileExperts { device, source, layout, options, .. } = &*experts;
        let dense = Self::dense(device, layout, options, &mut |param: &Param, part: &Part| {
            Ok::<_, WeightsError>(source.tensor(&part.name, &part.shape)?.incoming(param.shape[1]))
        })?;
        Ok(PackedWeights { dense, experts: Experts::File(experts) })
    }

    fn dense<'a, E>(
        device: &D,
        layout: &Layout,
        options: &WeightOptions,
        open: &mut impl FnMut(&Param, &Part) -> Result<Incoming<'a>, E>,
    ) -> Result<Vec<Held<D>>, E> {
        let mut dense = vec![];
        for (_, param) in layout.dense() {
            let parts = opened(param, open)?;
            dense.push(match options.unpacked(param.kind) {
                Some(dtype) => {
                    let mut plain = Tensor::new(device, param.shape, dtype);
                    let rows = (0..param.shape[0]).map(|i| row(param, &parts, i, Coding::plain(dtype)));
                    let bytes: Vec<u8> = rows.flat_map(|row| row.into_owned()).collect();
                    device.copy_from_host(&bytes, plain.view_mut());
                    Held::Plain(plain)
                }
                None => Held::Matrix(options.pack(device, param, layout.head.is_none(), &parts)),
            });
        }
        Ok(dense)
    }

    /// Bytes of memory that they take; where experts stay in their file, at most.
    pub fn bytes(&self) -> usize {
        let dense = self.dense.iter().map(|held| match held {
            Held::Plain(x) => x.view().len() * x.dtype().size(),
            Held::Matrix(w) => D::packed_bytes(w),
        });
        let experts = match &self.experts {
            Experts::Memory(experts) => experts.iter().flatten().flatten().map(D::packed_bytes).sum(),
            Experts::File(experts) => experts.room(),
        };
        dense.sum::<usize>() + experts
    }

    /// What was asked of experts that stay in their file; `None` if all are in memory.
    pub fn expert_reads(&self) -> Option<ExpertReads> {
        match &self.experts {
            Experts::Memory(_) => None,
            Experts::File(experts) => Some(experts.reads()),
        }
    }

    /// The sum of squares of every parameter, in a fixed order: what tells one model from another. Reads all of them.
    pub fn sums_of_squares(&self, device: &D) -> Result<Vec<f64>, Fault> {
        const ROWS: usize = 1024;
        let of_matrix = |w: &D::Packed| {
            let [n, k] = D::packed_shape(w);
            let rows: Vec<u32> = (0..n as u32).collect();
            let sums = rows.chunks(ROWS).map(|rows| {
                let mut wide = Tensor::new(device, [rows.len(), k], DType::F32);
                device.gather(rows, Operand::Packed(w), wide.view_mut());
                device.sum_of_squares(wide.view())
            });
            sums.sum::<f64>()
        };
        let dense = self.dense.iter().map(|held| match held {
            Held::Plain(x) => device.sum_of_squares(x.view()),
            Held::Matrix(w) => of_matrix(w),
        });
        let mut sums: Vec<f64> = dense.collect();
        match &self.experts {
            Experts::Memory(experts) => sums.extend(experts.iter().flatten().flatten().map(of_matrix)),
            Experts::File(experts) => experts.each(|pair| sums.extend(pair.iter().map(of_matrix)))?,
        }
        Ok(sums)
    }

    /// The matrices that a token meets, were each of `top_k` experts a sparse layer: their bytes. Not the embedding, of which
    /// a token reads a row, unless it makes the logits.
    pub fn active_bytes(&self, layout: &Layout, top_k: usize) -> usize {
        let read = |id: ParamId| layout.head.is_none() || id != layout.embed;
        let dense = layout.dense().zip(&self.dense).map(|((id, _), held)| match held {
            Held::Matrix(w) if read(id) => D::packed_bytes(w),
            Held::Plain(x) if x.view().shape()[0] > 1 => x.view().len() * x.dtype().size(),
            _ => 0,
        });
        let pair = |pair: &[D::Packed; 2]| pair.iter().map(D::packed_bytes).sum::<usize>();
        let experts = match &self.experts {
            Experts::Memory(experts) => experts.iter().filter_map(|layer| layer.first()).map(pair).sum(),
            Experts::File(experts) => experts.sizes().sum::<usize>(),
        };
        dense.sum::<usize>() + top_k * experts
    }
}

/// The tensors of a parameter.
fn opened<'a, E>(
    param: &Param,
    open: &mut impl FnMut(&Param, &Part) -> Result<Incoming<'a>, E>,
) -> Result<Vec<Incoming<'a>>, E> {
    param.parts.iter().map(|part| open(param, part)).collect()
}

/// The blocks that all parts lie in; of different ones those that lose nothing.
fn common(parts: impl IntoIterator<Item = Option<QuantKind>>) -> Option<QuantKind> {
    let kinds: Option<Vec<QuantKind>> = parts.into_iter().collect();
    let kinds = kinds?;
    let (&first, rest) = kinds.split_first()?;
    Some(if rest.iter().all(|&kind| kind == first) { first } else { QuantKind::Int8 })
}

/// Row i of a parameter, which is in one of its parts.
fn row<'a>(param: &Param, parts: &[Incoming<'a>], i: usize, coding: Coding) -> Cow<'a, [u8]> {
    let part = param.parts.iter().position(|part| part.rows.contains(&i)).expect("parts cover all rows");
    (parts[part].row)(i - param.parts[part].rows.start, coding)
}

impl<D: Device> Weights<D> for PackedWeights<D> {
    fn at(&self, id: ParamId) -> View<'_, D> {
        match &self.dense[id.number()] {
            Held::Plain(x) => x.view(),
            Held::Matrix(_) => panic!("a matrix is asked for as a vector"),
        }
    }
    fn exact(&self, id: ParamId) -> Operand<'_, D> {
        self.operand(id)
    }
    fn operand(&self, id: ParamId) -> Operand<'_, D> {
        match &self.dense[id.number()] {
            Held::Plain(x) => Operand::Plain(x.view()),
            Held::Matrix(w) => Operand::Packed(w),
        }
    }
    fn experts(&self, layer: usize, part: ExpertPart) -> Vec<Operand<'_, D>> {
        match &self.experts {
            Experts::Memory(experts) => {
                experts[layer].iter().map(|pair| Operand::Packed(&pair[part as usize])).collect()
            }
            Experts::File(_) => panic!("experts in a file are asked for all at once"),
        }
    }
    fn in_turns(&self, layer: usize, bands: &[Range<usize>], f: &mut dyn FnMut(&Turn<D>)) -> Result<(), Fault> {
        match &self.experts {
            Experts::Memory(_) => {
                f(&Turn::all(self, layer, bands));
                Ok(())
            }
            Experts::File(experts) => experts.in_turns(layer, bands, f),
        }
    }
}
