//! Experts that stay in their file until a token wants them, so that a model larger than memory still answers.
//!
//! Of a sparse model nearly all weights are experts', and a token meets a few of them. What every token meets is in memory,
//! as ever; of the experts as many as a [`Budget`] leaves room for, those that were wanted last. A layer asks when its
//! router has chosen ([`Weights::in_turns`](crate::Weights::in_turns)): what is missing is read from the mapped file and
//! packed, by all threads, while the system reads ahead; for its room go those that nobody has wanted the longest. If a pass
//! of many tokens wants more of one layer than there is room for, the layer works in turns.
//!
//! An expert is packed from the same bytes in the same way whenever it is, and a row's product does not depend on who else
//! is multiplied, so answers have the same bits whatever the room.
//!
//! What an expert costs is reading and packing it; the second is a copy where the file has the coding that is wanted, and
//! a conversion else. Under the file lies the system's cache of pages: a miss here need not be one there.

use super::source::{Elements, Source};
use super::{WeightsError, load_packed};
use crate::packed::{PackedWeights, WeightOptions};
use crate::store::{Layout, Param, Turn};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use wudao_device::{Device, Fault, Operand};

/// Experts that the system is told of before they are packed: enough for a disk to have something to do.
const AHEAD: usize = 4;

/// Memory that a model may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Bytes in all.
    pub bytes: usize,
    /// Of these, what is kept beside the weights: keys and values, and the table of positions.
    pub beside: usize,
}

/// What was asked of experts that stay in their file. All zero where all are in memory.
#[derive(Clone, Copy, PartialEq, Debug, Default, serde::Serialize)]
pub struct ExpertReads {
    /// Experts that passes wanted: one for each layer, pass and expert.
    pub wanted: u64,
    /// Of these, the ones that were in memory.
    pub found: u64,
    /// Bytes of the others, as the file has them.
    pub bytes: u64,
    /// Seconds that reading and packing those took.
    pub seconds: f64,
    /// Bytes of experts in memory, …
    pub held: usize,
    /// … and what there may be.
    pub room: usize,
}

/// Bytes that weights take once they are packed.
struct Sizes {
    dense: usize,
    /// By sparse layer and expert.
    experts: Vec<Vec<usize>>,
}

impl Sizes {
    fn of<D: Device>(source: &Source, layout: &Layout, options: &WeightOptions) -> Result<Sizes, WeightsError> {
        let size = |param: &Param| -> Result<usize, WeightsError> {
            let parts = elements(source, param)?;
            let blocks = parts.iter().map(|part| part.blocks().and_then(|rows| rows.kind().quant()));
            Ok(options.bytes::<D>(param, layout.head.is_none(), blocks))
        };
        let dense = layout.dense().try_fold(0, |sum, (_, param)| Ok(sum + size(param)?))?;
        let mut experts: Vec<Vec<usize>> = vec![];
        for (layer, _, [gate_up, down]) in layout.experts() {
            experts.resize_with(layer + 1, Vec::new);
            experts[layer].push(size(gate_up)? + size(down)?);
        }
        Ok(Sizes { dense, experts })
    }

    fn all(&self) -> impl Iterator<Item = usize> {
        self.experts.iter().flatten().copied()
    }
}

/// As [`load_packed`], in so much memory: experts that find no room stay in the source, which must not change meanwhile.
/// Refused is a budget that does not hold what every token needs and one expert.
pub fn load_within<D: Device>(
    device: &D,
    source: Source,
    layout: &Arc<Layout>,
    options: &WeightOptions,
    budget: Budget,
) -> Result<PackedWeights<D>, WeightsError> {
    source.complete()?;
    let sizes = Sizes::of::<D>(&source, layout, options)?;
    let fixed = sizes.dense.saturating_add(budget.beside);
    let largest = sizes.all().max().unwrap_or(0);
    let room = budget.bytes.saturating_sub(fixed);
    if budget.bytes < fixed.saturating_add(largest) {
        let [given, dense, beside, one, least] =
            [budget.bytes, sizes.dense, budget.beside, largest, fixed.saturating_add(largest)].map(binary);
        let problem = format!(
            "needs more memory than {given}: {dense} for the weights that every token meets, {one} for one expert, {beside} \
             for keys, values and tables; give it {least} at least"
        );
        return Err(WeightsError::file(source.path(), problem));
    }
    if sizes.all().sum::<usize>() <= room {
        return load_packed(device, &source, layout, options);
    }
    let cache = Mutex::new(Cache {
        held: HashMap::new(),
        by_use: BTreeMap::new(),
        clock: 0,
        reads: ExpertReads { room, ..ExpertReads::default() },
    });
    let (layout, options) = (layout.clone(), *options);
    let experts = FileExperts { device: device.clone(), source, layout, options, sizes: sizes.experts, room, cache };
    PackedWeights::beside(experts)
}

/// A size that is not less, as settings spell it.
fn binary(bytes: usize) -> String {
    if bytes < 64 << 20 { format!("{}K", bytes.div_ceil(1 << 10)) } else { format!("{}M", bytes.div_ceil(1 << 20)) }
}

/// The tensors of a parameter.
fn elements<'a>(source: &'a Source, param: &Param) -> Result<Vec<Elements<'a>>, WeightsError> {
    param.parts.iter().map(|part| source.tensor(&part.name, &part.shape)).collect()
}

/// Sparse layer and expert.
type Key = (usize, usize);

/// See the module.
pub(crate) struct FileExperts<D: Device> {
    pub device: D,
    pub source: Source,
    pub layout: Arc<Layout>,
    pub options: WeightOptions,
    /// Bytes of each.
    sizes: Vec<Vec<usize>>,
    /// Bytes that may be in memory; no expert is larger.
    room: usize,
    cache: Mutex<Cache<D>>,
}

/// An expert in memory.
struct Held<D: Device> {
    pair: [D::Packed; 2],
    bytes: usize,
    used: u64,
}

struct Cache<D: Device> {
    held: HashMap<Key, Held<D>>,
    /// The same by when they were wanted last.
    by_use: BTreeMap<u64, Key>,
    clock: u64,
    reads: ExpertReads,
}

impl<D: Device> Cache<D> {
    /// Whether an expert is here; if so, it is the last to go.
    fn touch(&mut self, key: Key) -> bool {
        let Some(held) = self.held.get_mut(&key) else { return false };
        self.by_use.remove(&held.used);
        self.clock += 1;
        held.used = self.clock;
        self.by_use.insert(self.clock, key);
        true
    }

    /// Lets those go that nobody has wanted the longest, until no more than `most` bytes are held.
    fn shrink(&mut self, most: usize) {
        while self.reads.held > most
            && let Some((_, key)) = self.by_use.pop_first()
            && let Some(gone) = self.held.remove(&key)
        {
            self.reads.held -= gone.bytes;
        }
    }

    fn put(&mut self, key: Key, pair: [D::Packed; 2], bytes: usize) {
        self.clock += 1;
        self.reads.held += bytes;
        self.by_use.insert(self.clock, key);
        self.held.insert(key, Held { pair, bytes, used: self.clock });
    }
}

impl<D: Device> FileExperts<D> {
    /// What was asked so far.
    pub fn reads(&self) -> ExpertReads {
        self.lock().reads
    }

    /// Most bytes that they take.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Bytes of the first expert of each layer, were it in memory.
    pub fn sizes(&self) -> impl Iterator<Item = usize> {
        self.sizes.iter().filter_map(|layer| layer.first().copied())
    }

    /// See [`crate::Weights::in_turns`].
    pub fn in_turns(&self, layer: usize, bands: &[Range<usize>], f: &mut dyn FnMut(&Turn<D>)) -> Result<(), Fault> {
        let wanted: Vec<usize> = (0..bands.len()).filter(|&e| !bands[e].is_empty()).collect();
        let mut cache = self.lock();
        let mut rest = &wanted[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |&&e: &&usize| {
                bytes += self.sizes[layer][e];
                bytes <= self.room
            };
            let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            self.fetch(&mut cache, layer, now)?;
            let held = &cache.held;
            let matrix = |part: usize| now.iter().map(move |&e| Operand::Packed(&held[&(layer, e)].pair[part]));
            let bands = now.iter().map(|&e| bands[e].clone()).collect();
            f(&Turn { bands, gate_up: matrix(0).collect(), down: matrix(1).collect() });
            rest = later;
        }
        Ok(())
    }

    /// Gives `f` every expert, in order, and keeps none.
    pub fn each(&self, mut f: impl FnMut(&[D::Packed; 2])) -> Result<(), Fault> {
        self.layout.experts().try_for_each(|(layer, e, _)| {
            f(&self.load((layer, e))?.0);
            Ok(())
        })
    }

    /// Sees that these experts of a layer are in memory, which all of them together fit in.
    fn fetch(&self, cache: &mut Cache<D>, layer: usize, experts: &[usize]) -> Result<(), Fault> {
        // First all that are there: none of them makes room for the others.
        let missing: Vec<Key> = experts.iter().map(|&e| (layer, e)).filter(|&key| !cache.touch(key)).collect();
        cache.reads.wanted += experts.len() as u64;
        cache.reads.found += (experts.len() - missing.len()) as u64;
        let start = Instant::now();
        missing.iter().take(AHEAD).for_each(|&key| self.will_need(key));
        for (i, &key) in missing.iter().enumerate() {
            missing.get(i + AHEAD).into_iter().for_each(|&next| self.will_need(next));
            let bytes = self.sizes[key.0][key.1];
            cache.shrink(self.room.saturating_sub(bytes));
            let (pair, read) = self.load(key)?;
            cache.put(key, pair, bytes);
            cache.reads.bytes += read as u64;
        }
        if !missing.is_empty() {
            cache.reads.seconds += start.elapsed().as_secs_f64();
        }
        Ok(())
    }

    /// An expert, packed, and the bytes of it in the file.
    fn load(&self, key: Key) -> Result<([D::Packed; 2], usize), Fault> {
        let mut read = 0;
        let mut pack = |param: &Param| {
            let parts = elements(&self.source, param).map_err(|error| Fault(error.to_string()))?;
            read += parts.iter().map(|part| part.mapped().len()).sum::<usize>();
            let parts: Vec<_> = parts.into_iter().map(|part| part.incoming(param.shape[1])).collect();
            Ok(self.options.pack(&self.device, param, false, &parts))
        };
        let [gate_up, down] = self.layout.expert(key.0, key.1);
        let pair = [pack(gate_up)?, pack(down)?];
        Ok((pair, read))
    }

    /// Has the system read an expert, if it will.
    fn will_need(&self, (layer, expert): Key) {
        let parts = self.layout.expert(layer, expert).iter().filter_map(|param| elements(&self.source, param).ok());
        parts.flatten().for_each(|part| part.mapped().will_need());
    }

    fn lock(&self) -> MutexGuard<'_, Cache<D>> {
        // A panic elsewhere leaves nothing half done here.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
