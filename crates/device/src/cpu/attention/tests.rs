//! Against the definition, against central differences, and against itself cut in other ways.

use crate::check::{Random, assert_close, assert_gradient};
use crate::cpu::testing::{cpu, dot, down, fresh, up};
use crate::{Cpu, DType, Device, Element, Heads, PAGE, Paged, Tensor, page_len};
use half::bf16;
use proptest::prelude::*;

fn run(cpu: &Cpu, heads: Heads, scale: f64, segments: &[u32], qkv: &[f64]) -> (Tensor<Cpu>, Tensor<Cpu>) {
    let t = qkv.len() / heads.width();
    let (mut out, mut lse) = (fresh(cpu, [t, heads.q * heads.dim]), fresh(cpu, [t, heads.q]));
    let qkv = up(cpu, [t, heads.width()], qkv);
    cpu.attention(heads, scale, segments, qkv.view(), out.view_mut(), lse.view_mut());
    (out, lse)
}

/// Every pair of tokens, masked by the definition, with the softmax written out.
fn plain(heads: Heads, scale: f64, segments: &[u32], qkv: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (width, dim) = (heads.width(), heads.dim);
    let t = qkv.len() / width;
    let head = |row: usize, h: usize| &qkv[row * width + h * dim..row * width + (h + 1) * dim];
    let segment = |row: usize| segments.iter().filter(|&&s| s as usize <= row).count();
    let (mut out, mut lse) = (vec![], vec![]);
    for i in 0..t {
        for h in 0..heads.q {
            let kv = heads.q + h * heads.kv / heads.q;
            let e: Vec<f64> = (0..t)
                .map(|j| {
                    let seen = j <= i && segment(i) == segment(j);
                    if seen { (scale * dot(head(i, h), head(j, kv))).exp() } else { 0.0 }
                })
                .collect();
            let z: f64 = e.iter().sum();
            lse.push(z.ln());
            out.extend((0..dim).map(|d| (0..t).map(|j| e[j] / z * head(j, kv + heads.kv)[d]).sum::<f64>()));
        }
    }
    (out, lse)
}

/// Cuts `0..t` at random places, with empty segments among them.
fn segments(r: &mut Random, t: usize, n: usize) -> Vec<u32> {
    let mut s: Vec<u32> = (0..n).map(|_| r.below(t + 1) as u32).collect();
    s.extend([0, t as u32]);
    s.sort_unstable();
    s
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn attention_matches_the_definition(
        t in 0usize..150, cuts in 0usize..6, kv in 1usize..3, group in 1usize..4, dim in 1usize..40, seed: u64,
    ) {
        let (cpu, mut r) = (cpu(), Random(seed));
        let heads = Heads { q: kv * group, kv, dim };
        let segments = segments(&mut r, t, cuts);
        let qkv: Vec<f64> = r.values(t * heads.width()).iter().map(|x| 2.0 * x).collect();
        let (out, lse) = run(&cpu, heads, 0.3, &segments, &qkv);
        let (expected_out, expected_lse) = plain(heads, 0.3, &segments, &qkv);
        assert_close("out", "attention", DType::F64, &expected_out, &down(&cpu, &out));
        assert_close("lse", "attention", DType::F64, &expected_lse, &down(&cpu, &lse));
    }

    /// A sequence fed through the cache in pieces gives what it gives in one.
    #[test]
    fn the_cache_agrees_with_the_whole(
        t in 1usize..150, cuts in 0usize..6, kv in 1usize..3, group in 1usize..4, dim in 1usize..40, seed: u64,
    ) {
        let (cpu, mut r) = (cpu(), Random(seed));
        let heads = Heads { q: kv * group, kv, dim };
        let steps = segments(&mut r, t, cuts);
        let qkv = r.values(t * heads.width());
        let (expected, _) = run(&cpu, heads, 0.3, &[0, t as u32], &qkv);
        let qkv = up(&cpu, [t, heads.width()], &qkv);
        let mut out = fresh(&cpu, [t, heads.q * dim]);
        let (mut k, mut v) = (fresh(&cpu, [t + 3, kv * dim]), fresh(&cpu, [t + 3, kv * dim]));
        for s in steps.windows(2) {
            let band = s[0] as usize..s[1] as usize;
            let x = qkv.view().rows(band.clone());
            let o = out.view_mut().rows(band.clone());
            cpu.attention_cached(heads, 0.3, band.start, x, k.view_mut(), v.view_mut(), o);
        }
        assert_close("cached", "attention", DType::F64, &down(&cpu, &expected), &down(&cpu, &out));
    }

    /// A segment's bits do not depend on what else is in the call.
    #[test]
    fn segments_are_alone(t in 1usize..200, before in 0usize..70, after in 0usize..70, seed: u64) {
        let (cpu, mut r) = (cpu(), Random(seed));
        let heads = Heads { q: 4, kv: 2, dim: 8 };
        let (width, wide) = (heads.width(), heads.q * heads.dim);
        let all = before + t + after;
        let (qkv, dout) = (r.values(all * width), r.values(all * wide));
        let both = |segments: &[u32], qkv: &[f64], dout: &[f64]| {
            let (out, lse) = run(&cpu, heads, 0.3, segments, qkv);
            let n = out.shape()[0];
            let mut d = fresh(&cpu, [n, width]);
            let (qkv, dout) = (up(&cpu, [n, width], qkv), up(&cpu, [n, wide], dout));
            let (q, o, l) = (qkv.view(), out.view(), lse.view());
            cpu.attention_backward(heads, 0.3, segments, q, o, l, dout.view(), d.view_mut());
            (down(&cpu, &out), down(&cpu, &d))
        };
        let (out, d) = both(&[0, before as u32, (before + t) as u32, all as u32], &qkv, &dout);
        let mine = before..before + t;
        let (alone, dalone) = both(
            &[0, t as u32],
            &qkv[mine.start * width..mine.end * width],
            &dout[mine.start * wide..mine.end * wide],
        );
        prop_assert!(out[mine.start * wide..mine.end * wide] == alone[..]);
        prop_assert!(d[mine.start * width..mine.end * width] == dalone[..]);
    }
}

/// In bf16, where a matrix unit may multiply: with whole blocks and without, and columns that do not fill its tiles.
#[test]
fn segments_are_alone_in_bf16() {
    let (cpu, mut r) = (cpu(), Random(9));
    for (before, t, dim) in [(0, 1, 64), (3, 33, 40), (70, 130, 64), (129, 300, 128)] {
        let heads = Heads { q: 4, kv: 2, dim };
        let (width, wide, all) = (heads.width(), heads.q * dim, before + t + 17);
        let mut values =
            |n: usize| -> Vec<bf16> { r.values(n).iter().map(|&x| bf16::from_f32(2.0 * x as f32)).collect() };
        let (qkv, dout) = (values(all * width), values(all * wide));
        let both = |segments: &[u32], qkv: &[bf16], dout: &[bf16]| {
            let n = qkv.len() / width;
            let new = |columns, dtype| Tensor::<Cpu>::new(&cpu, [n, columns], dtype);
            let (mut out, mut d, mut lse) = (new(wide, DType::Bf16), new(width, DType::Bf16), new(heads.q, DType::F32));
            let qkv = Tensor::from_host(&cpu, [n, width], qkv);
            let dout = Tensor::from_host(&cpu, [n, wide], dout);
            cpu.attention(heads, 0.2, segments, qkv.view(), out.view_mut(), lse.view_mut());
            let (o, l) = (out.view(), lse.view());
            cpu.attention_backward(heads, 0.2, segments, qkv.view(), o, l, dout.view(), d.view_mut());
            (down(&cpu, &out), down(&cpu, &d))
        };
        let cuts = [0, before, before + t, all].map(|at| at as u32);
        let (out, d) = both(&cuts, &qkv, &dout);
        let mine = before..before + t;
        let columns = |columns: usize| mine.start * columns..mine.end * columns;
        let (alone, dalone) = both(&[0, t as u32], &qkv[columns(width)], &dout[columns(wide)]);
        assert!(
            out[columns(wide)] == alone[..] && d[columns(width)] == dalone[..],
            "{t} rows after {before}, dim {dim}"
        );
    }
}

fn check_gradient(heads: Heads, segments: &[u32], seed: u64) {
    let (cpu, mut r, t) = (cpu(), Random(seed), segments[segments.len() - 1] as usize);
    let (width, wide, scale) = (heads.width(), heads.q * heads.dim, 0.7);
    let (x, c) = (r.values(t * width), r.values(t * wide));
    let (out, lse) = run(&cpu, heads, scale, segments, &x);
    let mut d = fresh(&cpu, [t, width]);
    let (qkv, dout) = (up(&cpu, [t, width], &x), up(&cpu, [t, wide], &c));
    let (o, l) = (out.view(), lse.view());
    cpu.attention_backward(heads, scale, segments, qkv.view(), o, l, dout.view(), d.view_mut());
    let loss = |x: &[f64]| dot(&c, &down(&cpu, &run(&cpu, heads, scale, segments, x).0));
    assert_gradient(&format!("attention {heads:?} {segments:?}"), loss, &x, &down(&cpu, &d));
}

#[test]
fn gradients() {
    check_gradient(Heads { q: 2, kv: 2, dim: 5 }, &[0, 9], 1);
    check_gradient(Heads { q: 4, kv: 2, dim: 3 }, &[0, 1, 1, 6, 7, 12], 2);
    check_gradient(Heads { q: 3, kv: 1, dim: 4 }, &[0, 5, 10], 3);
    // Longer than any tile.
    check_gradient(Heads { q: 2, kv: 1, dim: 2 }, &[0, 3, 150], 4);
}

#[test]
fn large_scores_do_not_overflow() {
    let cpu = cpu();
    let heads = Heads { q: 1, kv: 1, dim: 1 };
    let (out, lse) = run(&cpu, heads, 1.0, &[0, 2], &[1e4, 1e4, 3.0, -1e4, 1e4, 5.0]);
    assert_close("out", "attention", DType::F64, &[3.0, 4.0], &down(&cpu, &out));
    assert_close("lse", "attention", DType::F64, &[1e8, -1e8 + 2f64.ln()], &down(&cpu, &lse));
}

/// A sequence cut into calls, each beside another sequence, its pages anywhere.
fn paged<T: Element>(
    cpu: &Cpu,
    heads: Heads,
    qkv: &[T],
    cuts: &[u32],
    other: &[T],
    pages: &[u32],
    cache: DType,
) -> Vec<f64> {
    let (width, wide) = (heads.width(), heads.q * heads.dim);
    let (t, n) = (qkv.len() / width, other.len() / width);
    let page = [64, page_len(heads.kv, heads.dim, cache)];
    let (mut k, mut v) = (Tensor::<Cpu>::new(cpu, page, cache), Tensor::<Cpu>::new(cpu, page, cache));
    let theirs: Vec<u32> = (0..64).filter(|p| !pages.contains(p)).collect();
    let mut all = Vec::with_capacity(t * wide);
    for (i, cut) in cuts.windows(2).enumerate() {
        let (from, to) = (cut[0] as usize, cut[1] as usize);
        // The other one starts anew each time: first and after us in turns.
        let (mine, beside) =
            if i % 2 == 0 { (0..to - from, to - from..to - from + n) } else { (n..n + to - from, 0..n) };
        let me = Paged { rows: mine.clone(), past: from, pages };
        let it = Paged { rows: beside, past: 0, pages: &theirs };
        let (ours, rows) = (&qkv[from * width..to * width], to - from + n);
        let both = if i % 2 == 0 { [ours, other].concat() } else { [other, ours].concat() };
        let sequences = if i % 2 == 0 { [me, it] } else { [it, me] };
        let x = Tensor::from_host(cpu, [rows, width], &both);
        let mut out = Tensor::<Cpu>::new(cpu, [rows, wide], T::DTYPE);
        cpu.attention_paged(heads, 0.3, &sequences, x.view(), k.view_mut(), v.view_mut(), out.view_mut());
        all.extend(out.view().rows(mine).to_f64(cpu));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Pages give what the whole gives, and the same bits however the sequence is cut, whoever is beside it, wherever its
    /// pages lie, on any number of threads.
    #[test]
    fn pages_agree_with_the_whole_and_bit_for_bit_with_each_other(
        t in 1usize..600, cuts in 0usize..9, kv in 1usize..3, group in 1usize..6, dim in 1usize..100, n in 0usize..20, seed: u64,
    ) {
        let (cpu, mut r) = (cpu(), Random(seed));
        let heads = Heads { q: kv * group, kv, dim };
        // Numbers that f32 holds too.
        let mut values = |n: usize| r.values(n).into_iter().map(|x| f64::from(x as f32)).collect::<Vec<f64>>();
        let (qkv, other) = (values(t * heads.width()), values(n * heads.width()));
        let order = |r: &mut Random| {
            let mut free: Vec<u32> = (0..64).collect();
            (0..t.div_ceil(PAGE)).map(|_| free.swap_remove(r.below(free.len()))).collect::<Vec<u32>>()
        };
        let (here, there, steps) = (order(&mut r), order(&mut r), segments(&mut r, t, cuts));
        let whole = [0, t as u32];
        let one = paged(&cpu, heads, &qkv, &whole, &[], &here, DType::F64);
        let (expected, _) = run(&cpu, heads, 0.3, &whole, &qkv);
        assert_close("paged", "attention", DType::F64, &down(&cpu, &expected), &one);
        prop_assert!(one == paged(&Cpu::new(3), heads, &qkv, &steps, &other, &there, DType::F64));
        let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        let (qkv, other) = (narrow(&qkv), narrow(&other));
        for cache in [DType::F32, DType::Bf16, DType::I8] {
            let one = paged(&cpu, heads, &qkv, &whole, &[], &here, cache);
            prop_assert!(one == paged(&Cpu::new(3), heads, &qkv, &steps, &other, &there, cache));
            let what = if cache == DType::Bf16 { "attention order" } else { "attention" };
            assert_close("paged", what, cache, &down(&cpu, &expected), &one);
        }
    }
}

#[test]
#[should_panic(expected = "a page is written twice")]
fn two_sequences_cannot_write_one_page() {
    let heads = Heads { q: 1, kv: 1, dim: 2 };
    let x = vec![0.0f32; 2 * heads.width()];
    let cpu = cpu();
    let x = Tensor::from_host(&cpu, [2, heads.width()], &x);
    let cache = || Tensor::<Cpu>::new(&cpu, [2, PAGE * 2], DType::F32);
    let (mut k, mut v, mut out) = (cache(), cache(), Tensor::<Cpu>::new(&cpu, [2, 2], DType::F32));
    let of = |row: usize| Paged { rows: row..row + 1, past: 3, pages: &[1] };
    cpu.attention_paged(heads, 1.0, &[of(0), of(1)], x.view(), k.view_mut(), v.view_mut(), out.view_mut());
}
