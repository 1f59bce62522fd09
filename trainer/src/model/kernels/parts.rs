//! Tensors' memory on a CPU as slices, a sample each, which threads share out among themselves.
#![expect(unsafe_code, reason = "tensors' memory is read and written as slices")]

use std::array::from_fn;
use std::marker::PhantomData;
use tch::{Kind, Tensor};

/// Neighbouring channels that are computed at a time: one register of AVX-512.
pub const LANES: usize = 16;
/// Those of one pixel, in f32.
pub type Lanes = [f32; LANES];

/// What an activation is made of.
pub trait Element: Copy + Send + Sync {
    /// As libtorch calls it.
    const KIND: Kind;
    /// As f32.
    fn load(from: &[Self; LANES]) -> Lanes;
    /// Rounded, where it has to be.
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

/// The upper half of an f32.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Bf16(u16);

impl Element for Bf16 {
    const KIND: Kind = Kind::BFloat16;
    #[inline(always)]
    fn load(from: &[Self; LANES]) -> Lanes {
        from_fn(|i| f32::from_bits(u32::from(from[i].0) << 16))
    }
    /// To the nearest, ties to even.
    #[inline(always)]
    fn store(to: &mut [Self; LANES], lanes: Lanes) {
        let bits = lanes.map(f32::to_bits);
        let rounded: [u32; LANES] = from_fn(|i| bits[i].wrapping_add(0x7fff + ((bits[i] >> 16) & 1)));
        let rounded: [u32; LANES] =
            from_fn(|i| if bits[i] & 0x7fff_ffff > 0x7f80_0000 { 0x7fc0_0000 } else { rounded[i] }); // NaN stays NaN
        for i in 0..LANES {
            to[i] = Bf16((rounded[i] >> 16) as u16);
        }
    }
}

/// The memory of a contiguous tensor, cut into as many equal parts as there are samples, each of whole [`LANES`].
pub struct Parts<'a, T> {
    first: *mut [T; LANES],
    each: usize,
    samples: usize,
    tensor: PhantomData<&'a Tensor>,
}

// SAFETY: what is shared are slices of plain numbers; `get_mut` says who may write.
unsafe impl<T: Send + Sync> Sync for Parts<'_, T> {}

impl<'a> Parts<'a, f32> {
    /// As many equal parts of `values`.
    pub fn over(values: &'a mut [Lanes], samples: usize) -> Self {
        assert_eq!(values.len() % samples, 0);
        Self { first: values.as_mut_ptr(), each: values.len() / samples, samples, tensor: PhantomData }
    }
}

impl<'a, T: Element> Parts<'a, T> {
    /// `x` lies on the CPU, contiguous or with channels innermost, samples outermost, and is of kind `T`; or it is empty.
    pub fn of(x: &'a Tensor, samples: usize) -> Self {
        assert!(!x.device().is_cuda(), "a tensor of a GPU");
        let contiguous = || x.is_contiguous() || (x.dim() == 4 && x.permute([0, 2, 3, 1]).is_contiguous());
        assert!(x.numel() == 0 || contiguous(), "{:?} with gaps or in another order", x.size());
        assert!(x.numel() == 0 || x.kind() == T::KIND, "{:?} as {:?}", x.kind(), T::KIND);
        assert_eq!(x.numel() % (samples * LANES), 0, "{:?} in {samples} parts", x.size());
        Self { first: x.data_ptr().cast(), each: x.numel() / samples / LANES, samples, tensor: PhantomData }
    }

    /// One sample's.
    pub fn get(&self, sample: usize) -> &'a [[T; LANES]] {
        assert!(sample < self.samples);
        match self.each {
            0 => &[], // an empty tensor has no address
            // SAFETY: within the tensor, which outlives the slice; nobody writes to a tensor that is read here.
            each => unsafe { std::slice::from_raw_parts(self.first.add(sample * each), each) },
        }
    }

    /// The same, to write to.
    ///
    /// # Safety
    /// Nobody else has this sample's slice, or reads the tensor meanwhile.
    pub unsafe fn get_mut(&self, sample: usize) -> &'a mut [[T; LANES]] {
        assert!(sample < self.samples);
        match self.each {
            0 => &mut [],
            // SAFETY: within the tensor, which outlives the slice, and the caller's alone.
            each => unsafe { std::slice::from_raw_parts_mut(self.first.add(sample * each), each) },
        }
    }
}
