//! Ranks over MPI. Only this module calls it, through its C interface: rsmpi's own collectives drop return codes, and its
//! `Universe` finalises while unwinding, so that the other ranks wait for ever.
//!
//! All calls come from the thread that joined (`MPI_THREAD_FUNNELED`), except `MPI_Abort`, which comes from a thread that
//! panics. Each collective follows a barrier that sleeps while it waits: MPI's own calls spin, on cores that compute.
#![expect(unsafe_code, reason = "MPI is a C library")]

use super::collective::{Collective, LocalRank, check_summable};
use crate::sys::Event;
use crate::sys::error::{Error, Exit, Result};
use mpi::ffi;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tch::{Device, Kind, Tensor};

unsafe extern "C" {
    fn codinet_mpi_in_place() -> *mut c_void;
}

static JOINED: AtomicBool = AtomicBool::new(false);

/// `MPI_COMM_WORLD`, from `MPI_Init` to `MPI_Finalize`.
pub struct MpiWorld {
    rank: usize,
    ranks: usize,
    local_rank: LocalRank,
}

/// The communicator of all ranks.
fn world_comm() -> ffi::MPI_Comm {
    // SAFETY: a constant of the MPI library, initialised before main.
    unsafe { ffi::RSMPI_COMM_WORLD }
}

/// The MPI datatype of a tensor's elements.
fn datatype(kind: Kind) -> Result<ffi::MPI_Datatype> {
    // SAFETY: constants of the MPI library, initialised before main.
    let known = unsafe {
        match kind {
            Kind::Float => Some(ffi::RSMPI_FLOAT),
            Kind::Double => Some(ffi::RSMPI_DOUBLE),
            Kind::Int64 => Some(ffi::RSMPI_INT64_T),
            Kind::Uint8 | Kind::Bool => Some(ffi::RSMPI_UINT8_T),
            _ => None,
        }
    };
    known.ok_or_else(|| Error::new(Exit::Communication, format!("cannot send tensors of {kind:?}")))
}

/// Converts an MPI return code into a result that names the call.
fn check(code: c_int, call: &str) -> Result<()> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = vec![0u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length: c_int = 0;
    // SAFETY: `text` has the MPI_MAX_ERROR_STRING bytes that MPI_Error_string asks for.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut length) };
    let text = String::from_utf8_lossy(&text[..length.max(0) as usize]).into_owned();
    Err(Error::new(Exit::Communication, format!("{call} failed: {text}")))
}

/// The number of a tensor's elements; MPI takes a C int.
fn element_count(tensor: &Tensor) -> Result<c_int> {
    c_int::try_from(tensor.numel()).map_err(|_| {
        Error::new(Exit::Communication, "cannot send a tensor of more than 2³¹ elements in one call")
    })
}

/// Runs `operation`, which changes its argument in place, on a contiguous CPU copy of `tensor` (pinned if `tensor` is on a
/// GPU), and copies the result back.
fn on_host(tensor: &Tensor, operation: impl FnOnce(&Tensor) -> Result<()>) -> Result<()> {
    if tensor.device() == Device::Cpu && tensor.is_contiguous() {
        return operation(tensor);
    }
    let copy = tensor.detach().contiguous().internal_to_copy((tensor.kind(), Device::Cpu), true);
    if let Some(copied) = Event::record(tensor.device()) {
        copied.synchronize();
    }
    operation(&copy)?;
    tch::no_grad(|| tensor.shallow_clone().copy_(&copy));
    Ok(())
}

impl MpiWorld {
    /// All ranks: initialises MPI. Afterwards its errors are returned and no longer end the job.
    pub fn join() -> Result<Self> {
        let mut rank = 0;
        let mut size = 0;
        let mut local_rank = 0;
        let mut local_size = 0;
        // SAFETY: null argc/argv are allowed since MPI-2; the out-pointers outlive the calls; the
        // communicator of the shared-memory split is freed before it leaves scope.
        unsafe {
            let mut provided = 0;
            check(
                ffi::MPI_Init_thread(
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    ffi::RSMPI_THREAD_FUNNELED,
                    &mut provided,
                ),
                "MPI_Init_thread",
            )?;
            JOINED.store(true, Ordering::SeqCst);
            if provided < ffi::RSMPI_THREAD_FUNNELED {
                let what = "this MPI does not support threads; build it with MPI_THREAD_FUNNELED or higher";
                return Err(Error::new(Exit::Communication, what));
            }
            check(
                ffi::MPI_Comm_set_errhandler(world_comm(), ffi::RSMPI_ERRORS_RETURN),
                "MPI_Comm_set_errhandler",
            )?;
            check(ffi::MPI_Comm_rank(world_comm(), &mut rank), "MPI_Comm_rank")?;
            check(ffi::MPI_Comm_size(world_comm(), &mut size), "MPI_Comm_size")?;
            let mut host = ffi::RSMPI_COMM_NULL;
            let shared = ffi::RSMPI_COMM_TYPE_SHARED;
            check(
                ffi::MPI_Comm_split_type(world_comm(), shared, rank, ffi::RSMPI_INFO_NULL, &mut host),
                "MPI_Comm_split_type",
            )?;
            check(ffi::MPI_Comm_rank(host, &mut local_rank), "MPI_Comm_rank")?;
            check(ffi::MPI_Comm_size(host, &mut local_size), "MPI_Comm_size")?;
            check(ffi::MPI_Comm_free(&mut host), "MPI_Comm_free")?;
        }
        Ok(Self {
            rank: rank as usize,
            ranks: size as usize,
            local_rank: LocalRank { index: local_rank as usize, count: local_size as usize },
        })
    }

    /// A barrier that sleeps while it waits.
    fn sleeping_barrier(&self) -> Result<()> {
        // SAFETY: a constant of the MPI library, initialised before main.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        let mut complete = 0;
        let mut pause = Duration::from_micros(5);
        // SAFETY: MPI is initialised; the request lives until it is complete.
        check(unsafe { ffi::MPI_Ibarrier(world_comm(), &mut request) }, "MPI_Ibarrier")?;
        loop {
            // SAFETY: the request is the one above; no status is written.
            let code = unsafe { ffi::MPI_Test(&mut request, &mut complete, ffi::RSMPI_STATUS_IGNORE) };
            check(code, "MPI_Test")?;
            if complete != 0 {
                return Ok(());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_micros(500));
        }
    }

    /// The sum over ranks of bf16 values: each rank adds its share of the elements in f32, in rank order, and rounds once.
    /// As many bytes are sent as in the best all-reduce.
    fn sum_bf16(&self, tensor: &Tensor) -> Result<()> {
        let n = tensor.numel();
        let share = n.div_ceil(self.ranks);
        let count = c_int::try_from(share).expect("at most the elements that were counted before");
        // SAFETY: a contiguous CPU tensor of n 16-bit elements, which nothing else touches during the call.
        let values = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u16>(), n) };
        let mut own = values.to_vec();
        own.resize(share * self.ranks, 0);
        let mut received = vec![0u16; share * self.ranks];
        // SAFETY: a constant of the MPI library; both buffers hold `share` elements for every rank.
        let (kind, code) = unsafe {
            let kind = ffi::RSMPI_UINT16_T;
            let from = own.as_ptr().cast();
            let to = received.as_mut_ptr().cast();
            (kind, ffi::MPI_Alltoall(from, count, kind, to, count, kind, world_comm()))
        };
        check(code, "MPI_Alltoall")?;
        let sums: Vec<u16> = (0..share)
            .map(|i| to_bf16(received.iter().skip(i).step_by(share).map(|&bits| from_bf16(bits)).sum()))
            .collect();
        // SAFETY: as above; the sums are this rank's share.
        let code = unsafe {
            ffi::MPI_Allgather(
                sums.as_ptr().cast(),
                count,
                kind,
                own.as_mut_ptr().cast(),
                count,
                kind,
                world_comm(),
            )
        };
        check(code, "MPI_Allgather")?;
        values.copy_from_slice(&own[..n]);
        Ok(())
    }
}

fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to the nearest bf16, ties to even; NaN stays NaN.
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        (bits >> 16) as u16 | 0x40
    } else {
        ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
    }
}

impl Drop for MpiWorld {
    /// `MPI_Finalize` waits for every rank, so it is left out while unwinding.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            JOINED.store(false, Ordering::SeqCst);
            // SAFETY: MPI is initialised, and this is the thread that did it.
            let code = unsafe { ffi::MPI_Finalize() };
            if code != 0 {
                crate::eprint_line!("note: MPI_Finalize failed with code {code}"); // training is over
            }
        }
    }
}

/// If MPI is initialised, ends every rank by `MPI_Abort`; `mpirun` then returns `code`.
pub fn abort_if_joined(code: i32) {
    if JOINED.load(Ordering::SeqCst) {
        // SAFETY: MPI is initialised and not finalised; MPI_Abort does not return.
        unsafe { ffi::MPI_Abort(world_comm(), code) };
    }
}

impl Collective for MpiWorld {
    fn name(&self) -> &'static str {
        "MPI"
    }

    fn library_version(&self) -> String {
        let mut text = vec![0u8; ffi::MPI_MAX_LIBRARY_VERSION_STRING as usize];
        let mut length: c_int = 0;
        let mut level: c_int = 0;
        // SAFETY: `text` has the bytes that MPI_Get_library_version may write; MPI is initialised.
        let result = unsafe {
            check(
                ffi::MPI_Get_library_version(text.as_mut_ptr().cast(), &mut length),
                "MPI_Get_library_version",
            )
            .and(check(ffi::MPI_Query_thread(&mut level), "MPI_Query_thread"))
        };
        if let Err(error) = result {
            return error.to_string();
        }
        let text = String::from_utf8_lossy(&text[..length.max(0) as usize]).into_owned();
        let version = text.split(['\n', '\0']).next().unwrap_or_default().split(", package").next();
        // SAFETY: constants of the MPI library, initialised before main.
        let (serialized, multiple) = unsafe { (ffi::RSMPI_THREAD_SERIALIZED, ffi::RSMPI_THREAD_MULTIPLE) };
        let threads = match level {
            level if level >= multiple => "MPI_THREAD_MULTIPLE",
            level if level >= serialized => "MPI_THREAD_SERIALIZED",
            _ => "MPI_THREAD_FUNNELED",
        };
        format!("{}, {threads}", version.unwrap_or_default().trim())
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn local_rank(&self) -> LocalRank {
        self.local_rank
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<()> {
        on_host(tensor, |tensor| {
            let count = element_count(tensor)?;
            let datatype = datatype(tensor.kind())?;
            self.sleeping_barrier()?;
            // SAFETY: a contiguous CPU tensor of `count` elements of `datatype`, alive through the call.
            let code =
                unsafe { ffi::MPI_Bcast(tensor.data_ptr(), count, datatype, root as c_int, world_comm()) };
            check(code, "MPI_Bcast")
        })
    }

    fn all_reduce_sum(&self, tensor: &Tensor) -> Result<()> {
        check_summable(tensor)?;
        on_host(tensor, |tensor| {
            let count = element_count(tensor)?;
            self.sleeping_barrier()?;
            if tensor.kind() == Kind::BFloat16 {
                return self.sum_bf16(tensor);
            }
            let datatype = datatype(tensor.kind())?;
            // SAFETY: as for MPI_Bcast.
            let code = unsafe {
                let in_place = codinet_mpi_in_place();
                let sum = ffi::RSMPI_SUM;
                ffi::MPI_Allreduce(in_place, tensor.data_ptr(), count, datatype, sum, world_comm())
            };
            check(code, "MPI_Allreduce")
        })
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        let own = tensor.detach().to_device(Device::Cpu).contiguous();
        let count = element_count(&own)?;
        let datatype = datatype(own.kind())?;
        let mut shape = vec![self.ranks as i64];
        shape.extend(own.size());
        let all = Tensor::empty(&shape, (own.kind(), Device::Cpu));
        self.sleeping_barrier()?;
        // SAFETY: `all` has room for `count` elements of every rank; both tensors are contiguous and alive.
        let code = unsafe {
            ffi::MPI_Allgather(own.data_ptr(), count, datatype, all.data_ptr(), count, datatype, world_comm())
        };
        check(code, "MPI_Allgather")?;
        Ok(all.to_device(tensor.device()))
    }

    fn barrier(&self) -> Result<()> {
        self.sleeping_barrier()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounding_equals_libtorch() {
        let values: Vec<f32> =
            (0..2000).map(|i| ((i as f32) * 0.37).sin() * 10f32.powi(i % 60 - 30)).collect();
        let odd = [
            0.0,
            -0.0,
            f32::INFINITY,
            f32::MAX,
            1.0 + 1.0 / 256.0,
            1.0 + 3.0 / 256.0,
            f32::MIN_POSITIVE / 3.0,
        ];
        for value in values.into_iter().chain(odd) {
            let expected = Tensor::from(value).to_kind(Kind::BFloat16).to_kind(Kind::Float);
            assert_eq!(from_bf16(to_bf16(value)), f32::try_from(expected).unwrap(), "{value}");
        }
        assert!(from_bf16(to_bf16(f32::NAN)).is_nan());
    }
}
