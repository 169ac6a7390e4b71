//! What tests of products share: types, random matrices, and a product in every way that it may be computed.

use super::super::*;
use half::bf16;
use proptest::prelude::*;

pub(super) trait Number: Stored + Into<f64> {
    fn of(x: f64) -> Self;
    /// From 1 to the next number.
    const EPSILON: f64;
}
impl Number for f32 {
    fn of(x: f64) -> f32 {
        x as f32
    }
    const EPSILON: f64 = f32::EPSILON as f64;
}
impl Number for f64 {
    fn of(x: f64) -> f64 {
        x
    }
    const EPSILON: f64 = f64::EPSILON;
}
impl Number for Thirds {
    fn of(x: f64) -> Thirds {
        Thirds::narrow(x as f32)
    }
    const EPSILON: f64 = f32::EPSILON as f64;
}
impl From<Thirds> for f64 {
    fn from(x: Thirds) -> f64 {
        x.widen().into()
    }
}
impl Number for Wide {
    fn of(x: f64) -> Wide {
        Wide::narrow(x as f32)
    }
    const EPSILON: f64 = <bf16 as Number>::EPSILON;
}
impl From<Wide> for f64 {
    fn from(x: Wide) -> f64 {
        x.widen().into()
    }
}
impl Number for bf16 {
    fn of(x: f64) -> bf16 {
        bf16::from_f32(x as f32)
    }
    const EPSILON: f64 = 1.0 / 128.0;
}

/// The types of a product: A, B, what they are multiplied in, and C.
pub(super) trait Types {
    type A: Source<Real: Number> + Number;
    type B: Source<Real = <Self::A as Stored>::Real> + Number;
    type T: GemmScalar<Real = <Self::A as Stored>::Real> + Number;
    type C: Target<Self::T> + Number;
}
impl<A, B, T, C> Types for (A, B, T, C)
where
    A: Source<Real: Number> + Number,
    B: Source<Real = A::Real> + Number,
    T: GemmScalar<Real = A::Real> + Number,
    C: Target<T> + Number,
{
    type A = A;
    type B = B;
    type T = T;
    type C = C;
}
pub(super) type F32 = (f32, f32, f32, f32);
pub(super) type F64 = (f64, f64, f64, f64);
pub(super) type Pairs = (bf16, bf16, bf16, f32);
pub(super) type Rounded = (bf16, bf16, bf16, bf16);
pub(super) type Widened = (bf16, bf16, Wide, f32);
pub(super) type InParts = (f32, f32, Thirds, f32);

/// Calls a function for every combination of types.
macro_rules! with_all {
    ($f:ident($($argument:expr),*)) => {
        $f::<F32>($($argument),*);
        $f::<F64>($($argument),*);
        $f::<Pairs>($($argument),*);
        $f::<Rounded>($($argument),*);
        $f::<(f32, bf16, f32, f32)>($($argument),*);
        $f::<(bf16, f32, f32, f32)>($($argument),*);
        $f::<(bf16, f32, f32, bf16)>($($argument),*);
        $f::<(f32, f32, f32, bf16)>($($argument),*);
        $f::<(bf16, f32, bf16, f32)>($($argument),*);
        $f::<(f32, bf16, bf16, bf16)>($($argument),*);
        $f::<InParts>($($argument),*);
        $f::<Widened>($($argument),*);
        $f::<(f32, bf16, Wide, bf16)>($($argument),*);
        $f::<(bf16, f32, Wide, f32)>($($argument),*);
        $f::<(f32, bf16, Thirds, f32)>($($argument),*);
        $f::<(bf16, f32, Thirds, bf16)>($($argument),*);
    };
}
pub(super) use with_all;

/// Numbers in (−1, 1) that no two seeds share.
pub(super) fn random<X: Number>(seed: u64, n: usize) -> Vec<X> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        X::of((state >> 11) as f64 / (1u64 << 52) as f64 - 1.0)
    };
    (0..n).map(|_| next()).collect()
}

pub(super) fn supported<T: GemmScalar>() -> impl Iterator<Item = &'static Kernel<T>> {
    T::KERNELS.iter().filter(|k| (k.supported)())
}

pub(super) fn bits<X: Stored>(x: &[X]) -> &[u8] {
    bytemuck::cast_slice(x)
}

/// A matrix op(X) of `rows × cols`, as it is stored.
pub(super) struct Matrix<X> {
    pub(super) data: Vec<X>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) transposed: bool,
}

/// Small enough that the squares of a product's results have a sum.
pub(super) fn small<X: Number>(x: Vec<X>) -> Vec<X> {
    x.into_iter().map(|x| X::of(x.into() / 1024.0)).collect()
}

impl<X: Source + Number> Matrix<X> {
    pub(super) fn small(self) -> Self {
        Matrix { data: small(self.data), ..self }
    }

    pub(super) fn random(seed: u64, rows: usize, cols: usize, transposed: bool) -> Self {
        Matrix { data: random(seed, rows * cols), rows, cols, transposed }
    }

    pub(super) fn mat(&self) -> Mat<'_, X::Real> {
        let (rows, cols) = if self.transposed { (self.cols, self.rows) } else { (self.rows, self.cols) };
        Mat::new(X::data(&self.data), rows, cols)
    }

    pub(super) fn at(&self, i: usize, j: usize) -> f64 {
        self.data[if self.transposed { j * self.rows + i } else { i * self.cols + j }].into()
    }

    /// These rows alone.
    pub(super) fn band(&self, rows: Range<usize>) -> Self {
        assert!(!self.transposed);
        let data = self.data[rows.start * self.cols..rows.end * self.cols].to_vec();
        Matrix { data, rows: rows.len(), ..*self }
    }
}

/// C is `before` (if it accumulates) and the product, as closely as k products and sums in any order can be, and the
/// rounding of the result.
pub(super) fn check<Y: Types>(a: &Matrix<Y::A>, b: &Matrix<Y::B>, before: Option<&[Y::C]>, c: &[Y::C], what: &str) {
    let (n, k) = (b.cols, a.cols);
    assert_eq!(c.len(), a.rows * n);
    for (at, &c) in c.iter().enumerate() {
        let (i, j) = (at / n, at % n);
        let mut sum = before.map_or(0.0, |before| before[at].into());
        let mut size = sum.abs();
        for p in 0..k {
            let [x, y] = [a.at(i, p), b.at(p, j)].map(|x| Y::T::of(x).into());
            let x: f64 = x * y;
            sum += x;
            size += x.abs();
        }
        let c: f64 = c.into();
        let of_sum = (k as f64 + 2.0) * <<Y::A as Stored>::Real as Number>::EPSILON * size;
        let allowed = of_sum + Y::C::EPSILON / 2.0 * (sum.abs() + of_sum);
        assert!((c - sum).abs() <= allowed, "{what}: C[{i},{j}] is {c}, should be {sum}");
    }
}

/// C with columns packed ahead, so many blocks of a panel at a time, if that is worth it where forty rectangles pack them
/// otherwise, as it is with eight times as many columns as rows.
pub(super) fn ahead<Y: Types>(
    kernel: &Kernel<Y::T>,
    g: Gemm,
    a: &Matrix<Y::A>,
    b: &Matrix<Y::B>,
    before: &[Y::C],
    blocks: usize,
) -> Option<Vec<Y::C>> {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if m * n * k == 0 {
        return None;
    }
    let mut c = before.to_vec();
    let mut product = Product::new(g, a.mat(), b.mat(), MatMut::new(&mut c, m, n));
    let call = Call::new(g.accumulate, 0);
    product.estimate(kernel, call);
    if product.cols_in_place(kernel) {
        // As though they had to be packed: what is packed ahead is taken from there.
        product.size.packing[1] = plan::PACKING;
    }
    let cut = |sizes: &[plan::Size]| plan::tiles(sizes, kernel.size, 2 * kernel.rows(), 2, true);
    let tiles = (0..40).map(|i| plan::Tile { product: 0, rows: i..i + 1, cols: 0..1 }).collect();
    let bytes = blocks * kernel.cols() * Y::T::BLOCK * size_of::<Y::T>();
    let turns = ahead::turns(kernel, std::slice::from_ref(&product), tiles, cut, bytes);
    let parts = || turns.iter().flat_map(|turn| &turn.columns);
    assert_eq!(parts().map(|part| part.cols.len() * part.steps.len()).sum::<usize>(), n * k);
    if parts().all(|part| part.at.is_none()) {
        assert!(8 * m > n, "{}: not worth it with {m} × {n}, {k}", kernel.name);
        return None;
    }
    let products = &mut [product];
    take(&Pool::new(2), kernel, call, products, &turns);
    check_squares::<_, _, Y::T>(&products[0], kernel.name);
    Some(c)
}

/// The squares of results, each cut by itself.
pub(super) fn squares_of<C: Number>(c: &[C]) -> Squares {
    let squares = c.iter().map(|&x| Into::<f64>::into(x).powi(2));
    assert!(squares.clone().all(|x| x < crate::cpu::squares::BASE), "nothing to test");
    let units = squares.map(|x| (x / crate::SQUARE_UNIT) as u128).sum();
    Squares { units, numbers: c.len(), beyond: false }
}

/// A product knows the squares of all its results, or none.
pub(super) fn check_squares<R: Real, C: Target<T> + Number, T: GemmScalar<Real = R>>(
    product: &Product<R, C>,
    what: &str,
) {
    let known = C::SQUARES && product.size.k > 0;
    let squares = if known { squares_of(product.c) } else { Squares::default() };
    assert_eq!(*product.squares.as_ref().expect("they were asked for").lock().unwrap(), squares, "{what}");
}

/// One product with every kernel, any number of threads, and turned: the same bits, and the right ones.
pub(super) fn one_product<Y: Types>(g: Gemm, [m, n, k]: [usize; 3], seed: u64) {
    let g = g.measured(true);
    let a = Matrix::<Y::A>::random(seed, m, k, g.ta).small();
    let b = Matrix::<Y::B>::random(seed + 1, k, n, g.tb);
    let before: Vec<Y::C> = small(random(seed + 2, m * n));
    let call = Call::new(g.accumulate, 0);
    for kernel in supported::<Y::T>() {
        let run = |threads, turn| {
            let mut c = before.clone();
            let mut product = Product::new(g, a.mat(), b.mat(), MatMut::new(&mut c, m, n));
            product.plan::<Y::T>(kernel, call);
            if turn {
                product.turn(kernel, call);
            }
            let products = &mut [product];
            run(&Pool::new(threads), kernel, call, products);
            check_squares::<_, _, Y::T>(&products[0], kernel.name);
            c
        };
        let first = run(1, false);
        check::<Y>(&a, &b, g.accumulate.then_some(&before), &first, kernel.name);
        for blocks in [1, 5] {
            if let Some(c) = ahead::<Y>(kernel, g, &a, &b, &before, blocks) {
                assert!(bits(&c) == bits(&first), "{}: {blocks} blocks ahead", kernel.name);
            }
        }
        for threads in [1, 2, 3, 5] {
            if Y::T::TURNS {
                assert!(bits(&run(threads, true)) == bits(&first), "{}: turned, {threads} threads", kernel.name);
            }
            assert!(bits(&run(threads, false)) == bits(&first), "{}: {threads} threads", kernel.name);
        }
    }
}

/// A product by the portable kernel.
pub(super) fn portable<T: GemmScalar<Real = f32>, C: Target<T>>(
    g: Gemm,
    [a, b]: [Mat<f32>; 2],
    mut c: Vec<C>,
) -> Vec<C> {
    let (m, n) = (if g.ta { a.cols } else { a.rows }, if g.tb { b.rows } else { b.cols });
    let products = &mut [Product::new(g, a, b, MatMut::new(&mut c, m, n))];
    multiply(&Pool::new(2), T::KERNELS.last().expect("a portable kernel"), g.accumulate, products);
    c
}

/// Operands widened while they are packed, and pairs of them as every machine multiplies them: the same bits.
pub(super) fn widened<
    A: Source<Real = f32> + Number,
    B: Source<Real = f32> + Number,
    C: Target<bf16> + Target<Wide> + Number,
>(
    g: Gemm,
    [m, n, k]: [usize; 3],
    seed: u64,
) {
    let (a, b) = (Matrix::<A>::random(seed, m, k, g.ta), Matrix::<B>::random(seed + 1, k, n, g.tb));
    let before: Vec<C> = random(seed + 2, m * n);
    let pairs = portable::<bf16, C>(g, [a.mat(), b.mat()], before.clone());
    assert!(bits(&pairs) == bits(&portable::<Wide, C>(g, [a.mat(), b.mat()], before)));
}

pub(super) fn form() -> impl Strategy<Value = Gemm> {
    any::<[bool; 3]>().prop_map(|[ta, tb, accumulate]| Gemm { ta, tb, accumulate, ..Gemm::NN })
}

pub(super) fn bands_of(lens: &[usize]) -> (Vec<Range<usize>>, usize) {
    let mut end = 0;
    let bands = lens.iter().map(|len| {
        end += len;
        end - len..end
    });
    (bands.collect(), end)
}

/// Bands are products of their own, to the bit, on any number of threads.
pub(super) fn bands<Y: Types>(g: Gemm, lens: &[usize], [n, k]: [usize; 2], seed: u64) {
    let (bands, rows) = bands_of(lens);
    let a = Matrix::<Y::A>::random(seed, rows, k, false);
    let b: Vec<_> = (0..lens.len()).map(|e| Matrix::<Y::B>::random(seed + 9 + e as u64, k, n, g.tb)).collect();
    let before: Vec<Y::C> = random(seed + 1, rows * n);
    let mut apart = before.clone();
    for (band, b) in bands.iter().zip(&b) {
        let (a, at) = (a.band(band.clone()), band.start * n..band.end * n);
        let c = &mut apart[at.clone()];
        gemm::<Y::T, _>(&Pool::new(1), g, a.mat(), b.mat(), MatMut::new(c, band.len(), n));
        check::<Y>(&a, b, g.accumulate.then_some(&before[at]), c, "one band");
    }
    let b: Vec<_> = b.iter().map(Matrix::mat).collect();
    for threads in [1, 2, 3, 5] {
        let mut c = before.clone();
        gemm_bands::<Y::T, _>(&Pool::new(threads), g, &bands, a.mat(), &b, MatMut::new(&mut c, rows, n));
        assert!(bits(&c) == bits(&apart));
    }
}

pub(super) fn outer_bands<Y: Types>(g: Gemm, lens: &[usize], [m, n]: [usize; 2], seed: u64) {
    let g = g.measured(true);
    let (bands, rows) = bands_of(lens);
    let a = Matrix::<Y::A>::random(seed, rows, m, false).small();
    let b = Matrix::<Y::B>::random(seed + 1, rows, n, false);
    let before: Vec<Vec<Y::C>> = (0..lens.len()).map(|e| small(random(seed + 9 + e as u64, m * n))).collect();
    let mut apart = before.clone();
    for ((band, c), before) in bands.iter().zip(&mut apart).zip(&before) {
        let a = Matrix { rows: m, cols: band.len(), transposed: true, ..a.band(band.clone()) };
        let b = b.band(band.clone());
        gemm::<Y::T, _>(&Pool::new(1), g, a.mat(), b.mat(), MatMut::new(c, m, n));
        check::<Y>(&a, &b, g.accumulate.then_some(before), c, "one band");
    }
    for threads in [1, 2, 3, 5] {
        let mut c = before.clone();
        let acc_c = c.iter_mut().map(|c| MatMut::new(c, m, n)).collect();
        let said = gemm_bands_outer::<Y::T, _>(&Pool::new(threads), g, &bands, a.mat(), b.mat(), acc_c);
        assert!(c.iter().zip(&apart).all(|(c, apart)| bits(c) == bits(apart)));
        assert!(Y::C::SQUARES, "else there is nothing to say");
        for ((said, c), band) in said.into_iter().zip(&c).zip(&bands) {
            assert_eq!(said, if band.is_empty() { None } else { squares_of(c).sum(c.len()) }, "{lens:?}");
        }
    }
}
