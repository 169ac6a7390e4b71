//! From the types of views, which are known when a kernel is called, to those of Rust, which it is compiled for.
//!
//! The macros name types of the module that uses them.

use crate::DType;

/// Runs `$body` with `$R` the Rust type of a dtype that kernels compute in.
macro_rules! by_dtype {
    ($dtype:expr, $R:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $R = f32;
                $body
            }
            DType::F64 => {
                type $R = f64;
                $body
            }
            other => panic!("{other:?} is not a type that kernels compute in"),
        }
    };
}

/// Runs `$body` with `$A` the Rust type of a dtype that operands and activations may have.
macro_rules! by_stored {
    ($dtype:expr, $A:ident => $body:expr) => {
        match $dtype {
            DType::Bf16 => {
                type $A = bf16;
                $body
            }
            real => by_dtype!(real, $A => $body),
        }
    };
}

/// Runs `$body` with `$T` the type that two operands are multiplied in, and `$C` the type of the result.
macro_rules! by_product {
    (@ $t:ty, $c:ty, $T:ident, $C:ident => $body:expr) => {{
        type $T = $t;
        type $C = $c;
        $body
    }};
    ($cpu:expr, $exact:expr, $a:expr, $b:expr, $c:expr, $T:ident, $C:ident => $body:expr) => {
        match (multiplied_in($exact, $a, $b), $c) {
            (DType::F32, DType::Bf16) if $cpu.thirds => by_product!(@ Thirds, bf16, $T, $C => $body),
            (DType::F32, DType::F32) if $cpu.thirds => by_product!(@ Thirds, f32, $T, $C => $body),
            (DType::Bf16, DType::Bf16) if $cpu.wide => by_product!(@ Wide, bf16, $T, $C => $body),
            (DType::Bf16, DType::F32) if $cpu.wide => by_product!(@ Wide, f32, $T, $C => $body),
            (DType::Bf16, DType::Bf16) => by_product!(@ bf16, bf16, $T, $C => $body),
            (DType::Bf16, DType::F32) => by_product!(@ bf16, f32, $T, $C => $body),
            (DType::F32, DType::Bf16) => by_product!(@ f32, bf16, $T, $C => $body),
            (DType::F32, DType::F32) => by_product!(@ f32, f32, $T, $C => $body),
            (DType::F64, DType::F64) => by_product!(@ f64, f64, $T, $C => $body),
            other => panic!("no product in and to {other:?}"),
        }
    };
}

/// The type that operands are multiplied in: theirs, or of two the narrower, if not `exact`.
pub(super) fn multiplied_in(exact: bool, a: DType, b: DType) -> DType {
    match (a, b) {
        (a, b) if a == b => a,
        (DType::F32, DType::Bf16) | (DType::Bf16, DType::F32) if exact => DType::F32,
        (DType::F32, DType::Bf16) | (DType::Bf16, DType::F32) => DType::Bf16,
        other => panic!("no product of types {other:?}"),
    }
}

/// Runs `$body` with `$A` the type of queries, keys and values, and `$T` that of a cache of them.
macro_rules! by_cache {
    (@ $a:ty, $t:ty, $A:ident, $T:ident => $body:expr) => {{
        type $A = $a;
        type $T = $t;
        $body
    }};
    ($a:expr, $t:expr, $A:ident, $T:ident => $body:expr) => {
        match ($a, $t) {
            (DType::F64, DType::F64) => by_cache!(@ f64, f64, $A, $T => $body),
            (DType::F32, DType::F32) => by_cache!(@ f32, f32, $A, $T => $body),
            (DType::F32, DType::Bf16) => by_cache!(@ f32, bf16, $A, $T => $body),
            (DType::Bf16, DType::Bf16) => by_cache!(@ bf16, bf16, $A, $T => $body),
            (DType::F32, DType::I8) => by_cache!(@ f32, i8, $A, $T => $body),
            (DType::Bf16, DType::I8) => by_cache!(@ bf16, i8, $A, $T => $body),
            (a, t) => panic!("no cache of {t:?} for keys and values in {a:?}"),
        }
    };
}

/// Runs `$body` with `$X` and `$Y` the Rust types of two dtypes of which one converts to the other.
macro_rules! by_conversion {
    ($x:expr, $y:expr, $X:ident, $Y:ident => $body:expr) => {
        match $x {
            DType::U32 => {
                type $X = u32;
                type $Y = u32;
                $body
            }
            real => by_stored!(real, $X => by_stored!($y, $Y => $body)),
        }
    };
}
