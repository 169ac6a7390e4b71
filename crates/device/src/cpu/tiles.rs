//! The tiles of x86-64's matrix extensions (AMX): whether they are there, and their shapes.
//!
//! A thread has eight tiles, whose rows and bytes of a row are set by one slow instruction, so what they are now is
//! remembered: everyone who uses tiles sets their shapes here. Rust has no stable names for these instructions, so users
//! write them as assembly; the compiler never touches tiles itself. Linux gives them to a process that asks.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::cell::Cell;
use std::ptr;
use std::sync::OnceLock;

/// Multiplies bf16 (bit of CPUID 7.0, EDX).
pub(in crate::cpu) const BF16: u32 = 1 << 22;
/// Multiplies int8.
pub(in crate::cpu) const INT8: u32 = 1 << 25;

/// Whether the processor has tiles that do this, and vectors beside them, and the system lets us use them. The first call
/// asks the system.
pub(in crate::cpu) fn supported(what: u32) -> bool {
    static HAVE: OnceLock<u32> = OnceLock::new();
    const TILES: u32 = 1 << 24;
    let have = *HAVE.get_or_init(|| {
        let vectors = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("fma");
        let bits = if vectors && __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
        if bits & TILES != 0 && permitted() { bits } else { 0 }
    });
    have & what == what
}

#[cfg(all(target_os = "linux", not(miri)))]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: a system call that reads no memory, and changes nothing but the right to use tiles.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn permitted() -> bool {
    false
}

/// The shapes of a thread's tiles: the operand of `ldtilecfg`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::cpu) struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Of each tile its rows, at most 16, and the bytes of a row, at most 64. Neither may be 0, even where a tile is not used.
    pub const fn new(tiles: [(u8, u16); 8]) -> Shapes {
        let mut shapes = Shapes { palette: 1, start: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut i = 0;
        while i < 8 {
            let (rows, bytes) = tiles[i];
            assert!(rows > 0 && rows <= 16 && bytes > 0 && bytes <= 64, "shape of a tile");
            (shapes.rows[i], shapes.row_bytes[i]) = (rows, bytes);
            i += 1;
        }
        shapes
    }

    /// Gives this thread's tiles these shapes. What was in them is lost, if they had others.
    ///
    /// # Safety
    /// Tiles are [`supported`].
    #[inline]
    pub unsafe fn set(&'static self) {
        thread_local! {
            static NOW: Cell<*const Shapes> = const { Cell::new(ptr::null()) };
        }
        // Comparing addresses is enough: shapes that are set twice do no harm.
        if !ptr::eq(NOW.get(), self) {
            NOW.set(self);
            // SAFETY: tiles are there, and no shape can be made that is not valid.
            unsafe { asm!("ldtilecfg [{}]", in(reg) self, options(nostack, readonly)) }
        }
    }
}
