//! The memory of a CPU's tensors as slices, one per sample, for threads that work on different samples.
#![expect(unsafe_code, reason = "tensors' memory is read and written as slices")]

use std::array::from_fn;
use std::marker::PhantomData;
use tch::{Kind, Tensor};

/// Neighbouring channels that are computed together: one register of AVX-512.
pub const LANES: usize = 16;
/// [`LANES`] channels of one pixel, in f32.
pub type Lanes = [f32; LANES];

/// An element of an activation.
pub trait Element: Copy + Send + Sync {
    /// Its kind in libtorch.
    const KIND: Kind;
    /// Converts to f32.
    fn load(from: &[Self; LANES]) -> Lanes;
    /// Converts from f32, rounding if it must.
    fn store(to: &mut [Self; LANES], lanes: Lanes);
}

impl Element for f32 {
    const KIND: Kind = Kind::Float;
    #[inline(always)]
    fn load(from: &[Self; LANES]) -> Lanes {
        *from
    }
    #[inline(always)]
    fn store(to: &mut [Self; LANES], lanes: Lanes) {
        *to = lanes;
    }
}

/// bfloat16: the upper half of an f32.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Bf16(u16);

impl Element for Bf16 {
    const KIND: Kind = Kind::BFloat16;
    #[inline(always)]
    fn load(from: &[Self; LANES]) -> Lanes {
        from_fn(|i| f32::from_bits(u32::from(from[i].0) << 16))
    }
    /// Rounds to nearest, ties to even; NaN stays NaN.
    #[inline(always)]
    fn store(to: &mut [Self; LANES], lanes: Lanes) {
        let bits = lanes.map(f32::to_bits);
        let rounded: [u32; LANES] = from_fn(|i| bits[i].wrapping_add(0x7fff + ((bits[i] >> 16) & 1)));
        let rounded: [u32; LANES] =
            from_fn(|i| if bits[i] & 0x7fff_ffff > 0x7f80_0000 { 0x7fc0_0000 } else { rounded[i] });
        for i in 0..LANES {
            to[i] = Bf16((rounded[i] >> 16) as u16);
        }
    }
}

/// The memory of a contiguous tensor, cut into one equal slice per sample, each of whole [`LANES`].
pub struct SampleSlices<'a, T> {
    first: *mut [T; LANES],
    len: usize,
    samples: usize,
    tensor: PhantomData<&'a Tensor>,
}

// SAFETY: the slices are of plain numbers; `get_mut` states who may write.
unsafe impl<T: Send + Sync> Sync for SampleSlices<'_, T> {}

impl<'a> SampleSlices<'a, f32> {
    /// One equal slice of `values` per sample.
    pub fn from_lanes(values: &'a mut [Lanes], samples: usize) -> Self {
        assert_eq!(values.len() % samples, 0);
        Self { first: values.as_mut_ptr(), len: values.len() / samples, samples, tensor: PhantomData }
    }
}

impl<'a, T: Element> SampleSlices<'a, T> {
    /// `x` is on the CPU, contiguous or channels-last, with samples outermost, and of kind `T`; or it is empty.
    pub fn from_tensor(x: &'a Tensor, samples: usize) -> Self {
        assert!(!x.device().is_cuda(), "a GPU's tensor");
        let contiguous = || x.is_contiguous() || (x.dim() == 4 && x.permute([0, 2, 3, 1]).is_contiguous());
        assert!(x.numel() == 0 || contiguous(), "{:?} is not contiguous", x.size());
        assert!(x.numel() == 0 || x.kind() == T::KIND, "{:?} instead of {:?}", x.kind(), T::KIND);
        assert_eq!(
            x.numel() % (samples * LANES),
            0,
            "{:?} is not divisible into {samples} slices of whole lanes",
            x.size()
        );
        Self { first: x.data_ptr().cast(), len: x.numel() / samples / LANES, samples, tensor: PhantomData }
    }

    /// The slice of one sample.
    pub fn get(&self, sample: usize) -> &'a [[T; LANES]] {
        assert!(sample < self.samples);
        match self.len {
            0 => &[], // an empty tensor has no address
            // SAFETY: within the tensor, which outlives the slice; nobody writes to a tensor while it is read here.
            len => unsafe { std::slice::from_raw_parts(self.first.add(sample * len), len) },
        }
    }

    /// The slice of one sample, for writing.
    ///
    /// # Safety
    /// Nobody else has this sample's slice or reads the tensor meanwhile.
    pub unsafe fn get_mut(&self, sample: usize) -> &'a mut [[T; LANES]] {
        assert!(sample < self.samples);
        match self.len {
            0 => &mut [],
            // SAFETY: within the tensor, which outlives the slice; only the caller has it.
            len => unsafe { std::slice::from_raw_parts_mut(self.first.add(sample * len), len) },
        }
    }
}
