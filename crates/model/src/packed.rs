//! The parameters of a model that only answers: every matrix once, packed for products, in as many bits as it shall have.
//!
//! They arrive a parameter at a time, from a file or from anywhere else ([`Incoming`]), and each is packed before the next
//! is looked at: no second copy of a model is ever in memory. What is not a matrix (gains, biases) stays as it is, and so do
//! routers, which are small and whose choices are all or nothing.
//!
//! With 4 bits the matrix that makes the logits has 8: its errors go straight into the answer. Files of that name commonly
//! keep it in more bits too.

use crate::store::{ExpertPart, Kind, Layout, Param, ParamId, Part, Weights};
use std::borrow::Cow;
use std::sync::Arc;
use wudao_device::{Coding, DType, Device, Operand, QuantKind, Tensor, View};

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

/// The parameters of a model, packed.
pub struct PackedWeights<D: Device> {
    dense: Vec<Held<D>>,
    /// By sparse layer and local expert: gate-up, down.
    experts: Vec<Vec<[D::Packed; 2]>>,
}

impl<D: Device> PackedWeights<D> {
    /// Packs one parameter after another; `open` finds the tensor of a part.
    pub fn new<'a, E>(
        device: &D,
        layout: &Arc<Layout>,
        options: &WeightOptions,
        mut open: impl FnMut(&Param, &Part) -> Result<Incoming<'a>, E>,
    ) -> Result<Self, E> {
        let tied = layout.head.is_none();
        let mut parts = |param: &Param| -> Result<Vec<Incoming<'a>>, E> {
            param.parts.iter().map(|part| open(param, part)).collect()
        };
        let pack = |param: &Param, parts: &[Incoming<'a>]| {
            let coding = options.of(param, tied, common(parts));
            device.pack(coding, param.shape, &|i| row(param, parts, i, coding))
        };
        let mut dense = vec![];
        for (_, param) in layout.dense() {
            let parts = parts(param)?;
            dense.push(match param.kind {
                Kind::Norm | Kind::Bias | Kind::Correction | Kind::Expansion => {
                    let dtype = if param.kind == Kind::Expansion { options.operands } else { DType::F32 };
                    let mut plain = Tensor::new(device, param.shape, dtype);
                    let rows = (0..param.shape[0]).map(|i| row(param, &parts, i, Coding::plain(dtype)));
                    let bytes: Vec<u8> = rows.flat_map(|row| row.into_owned()).collect();
                    device.copy_from_host(&bytes, plain.view_mut());
                    Held::Plain(plain)
                }
                _ => Held::Matrix(pack(param, &parts)),
            });
        }
        let mut experts: Vec<Vec<[D::Packed; 2]>> = vec![];
        for (layer, _, [gate_up, down]) in layout.experts() {
            experts.resize_with(layer + 1, Vec::new);
            let gate_up = pack(gate_up, &parts(gate_up)?);
            experts[layer].push([gate_up, pack(down, &parts(down)?)]);
        }
        Ok(PackedWeights { dense, experts })
    }

    /// Bytes of memory that they take.
    pub fn bytes(&self) -> usize {
        let dense = self.dense.iter().map(|held| match held {
            Held::Plain(x) => x.view().len() * x.dtype().size(),
            Held::Matrix(w) => D::packed_bytes(w),
        });
        dense.chain(self.experts.iter().flatten().flatten().map(D::packed_bytes)).sum()
    }

    /// The sum of squares of every parameter, in a fixed order: what tells one model from another.
    pub fn sums_of_squares(&self, device: &D) -> Vec<f64> {
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
        dense.chain(self.experts.iter().flatten().flatten().map(of_matrix)).collect()
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
        let experts = self.experts.iter().filter_map(|experts| Some(top_k * pair(experts.first()?)));
        dense.chain(experts).sum()
    }
}

/// The blocks that all parts lie in; of different ones those that lose nothing.
fn common(parts: &[Incoming]) -> Option<QuantKind> {
    let kinds: Option<Vec<QuantKind>> = parts.iter().map(|part| part.blocks).collect();
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
        self.experts[layer].iter().map(|pair| Operand::Packed(&pair[part as usize])).collect()
    }
}
