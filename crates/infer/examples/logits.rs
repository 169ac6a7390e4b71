//! Logits after each of some tokens, as little-endian f32 on standard output: for comparison with other programs.
//! `cargo run --release -p wudao-infer --example logits -- MODEL ID...`

use std::error::Error;
use std::io::Write;
use std::path::Path;
use wudao_comm::Solo;
use wudao_device::{Cpu, DType};
use wudao_infer::Checkpoint;
use wudao_model::WeightOptions;
use wudao_model::{Cx, Packing};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: logits MODEL ID...")?;
    let ids = arguments.map(|id| id.parse()).collect::<Result<Vec<u32>, _>>()?;
    let device = Cpu::new(std::thread::available_parallelism()?.get());
    let checkpoint = Checkpoint::open(&device, Path::new(&path), &WeightOptions::plain(DType::F32))?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= checkpoint.config.vocab_size) {
        return Err(format!("there is no token {id}").into());
    }
    let packing = Packing::of_lengths(&[ids.len()]);
    let (weights, aux) = (&checkpoint.weights, Default::default());
    let mut cx = Cx { device: &device, comm: &Solo, weights, packing: &packing, aux, log: None, again: false };
    let logits = checkpoint.model.logits(&mut cx, &ids)?.view().to_f64(&device);
    let bytes: Vec<u8> = logits.into_iter().flat_map(|x| (x as f32).to_le_bytes()).collect();
    Ok(std::io::stdout().write_all(&bytes)?)
}
