//! Ranks over MPI. The only module that calls it, by its C interface: rsmpi's own collectives drop return
//! codes, and its `Universe` finalises while unwinding, which leaves the other ranks waiting for ever.
//!
//! Calls come from the thread that joined (`MPI_THREAD_FUNNELED`), `MPI_Abort` from whichever panics. Before a collective
//! ranks meet by a barrier that sleeps while it waits: MPI's own calls spin, on cores that have better to do.
#![expect(unsafe_code, reason = "MPI is a C library")]

use super::{Collective, reducible};
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
    world: usize,
    local: (usize, usize),
}

/// The communicator of all ranks.
fn comm() -> ffi::MPI_Comm {
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

/// Turns an MPI return code into a result that names the call.
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

/// An MPI element count, which is a C int.
fn count(tensor: &Tensor) -> Result<c_int> {
    c_int::try_from(tensor.numel()).map_err(|_| {
        Error::new(Exit::Communication, "a tensor of over 2³¹ elements cannot be sent in one call")
    })
}

/// Runs `host` on a contiguous CPU tensor, pinned where `tensor` is on a GPU, and brings the result back to `tensor`'s
/// device and layout.
fn on_host(tensor: &Tensor, host: impl FnOnce(&Tensor) -> Result<()>) -> Result<()> {
    if tensor.device() == Device::Cpu && tensor.is_contiguous() {
        return host(tensor);
    }
    let copy = tensor.detach().contiguous().internal_to_copy((tensor.kind(), Device::Cpu), true);
    if let Some(copied) = Event::record(tensor.device()) {
        copied.synchronize();
    }
    host(&copy)?;
    tch::no_grad(|| tensor.shallow_clone().copy_(&copy));
    Ok(())
}

impl MpiWorld {
    /// `MPI_Init`, by every rank; afterwards errors come back as results instead of ending the job.
    pub fn join() -> Result<Self> {
        let (mut rank, mut size, mut local_rank, mut local_size) = (0, 0, 0, 0);
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
            check(ffi::MPI_Comm_set_errhandler(comm(), ffi::RSMPI_ERRORS_RETURN), "MPI_Comm_set_errhandler")?;
            check(ffi::MPI_Comm_rank(comm(), &mut rank), "MPI_Comm_rank")?;
            check(ffi::MPI_Comm_size(comm(), &mut size), "MPI_Comm_size")?;
            let mut host = ffi::RSMPI_COMM_NULL;
            let shared = ffi::RSMPI_COMM_TYPE_SHARED;
            check(
                ffi::MPI_Comm_split_type(comm(), shared, rank, ffi::RSMPI_INFO_NULL, &mut host),
                "MPI_Comm_split_type",
            )?;
            check(ffi::MPI_Comm_rank(host, &mut local_rank), "MPI_Comm_rank")?;
            check(ffi::MPI_Comm_size(host, &mut local_size), "MPI_Comm_size")?;
            check(ffi::MPI_Comm_free(&mut host), "MPI_Comm_free")?;
        }
        Ok(Self {
            rank: rank as usize,
            world: size as usize,
            local: (local_rank as usize, local_size as usize),
        })
    }
}

impl MpiWorld {
    /// Returns once every rank has come here.
    fn meet(&self) -> Result<()> {
        // SAFETY: a constant of the MPI library, initialised before main.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        let (mut all_here, mut pause) = (0, Duration::from_micros(5));
        // SAFETY: MPI is initialised; the request lives until it is complete.
        check(unsafe { ffi::MPI_Ibarrier(comm(), &mut request) }, "MPI_Ibarrier")?;
        loop {
            // SAFETY: the request is the one above; a status is not asked for.
            let code = unsafe { ffi::MPI_Test(&mut request, &mut all_here, ffi::RSMPI_STATUS_IGNORE) };
            check(code, "MPI_Test")?;
            if all_here != 0 {
                return Ok(());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_micros(500));
        }
    }

    /// The sum over ranks of bf16 values: each rank adds up its share of the elements in f32, in rank order, and rounds
    /// once. As many bytes travel as in the best of all-reduces.
    fn sum_bf16(&self, tensor: &Tensor) -> Result<()> {
        let n = tensor.numel();
        let share = n.div_ceil(self.world);
        let count = c_int::try_from(share).expect("fewer elements than were counted before");
        // SAFETY: a contiguous CPU tensor of n 16-bit elements, which nothing else touches during the call.
        let values = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u16>(), n) };
        let mut mine = values.to_vec();
        mine.resize(share * self.world, 0);
        let mut theirs = vec![0u16; share * self.world];
        // SAFETY: a constant of the MPI library; both buffers hold `share` elements for every rank.
        let (kind, code) = unsafe {
            let kind = ffi::RSMPI_UINT16_T;
            let (from, to) = (mine.as_ptr().cast(), theirs.as_mut_ptr().cast());
            (kind, ffi::MPI_Alltoall(from, count, kind, to, count, kind, comm()))
        };
        check(code, "MPI_Alltoall")?;
        let sums: Vec<u16> = (0..share)
            .map(|i| to_bf16(theirs.iter().skip(i).step_by(share).map(|&bits| from_bf16(bits)).sum()))
            .collect();
        // SAFETY: as above; the sums are one rank's share.
        let code = unsafe {
            ffi::MPI_Allgather(
                sums.as_ptr().cast(),
                count,
                kind,
                mine.as_mut_ptr().cast(),
                count,
                kind,
                comm(),
            )
        };
        check(code, "MPI_Allgather")?;
        values.copy_from_slice(&mine[..n]);
        Ok(())
    }
}

fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to the nearest, to even where two are as near; what is not a number stays so.
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    match value.is_nan() {
        true => (bits >> 16) as u16 | 0x40,
        false => ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16,
    }
}

impl Drop for MpiWorld {
    /// `MPI_Finalize` waits for every rank, so it is skipped while unwinding.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            JOINED.store(false, Ordering::SeqCst);
            // SAFETY: MPI is initialised, and this is the thread that did it.
            let code = unsafe { ffi::MPI_Finalize() };
            if code != 0 {
                eprintln!("note: MPI_Finalize failed with code {code}"); // training is over
            }
        }
    }
}

/// `MPI_Abort`, where MPI runs: every rank ends, and `mpirun` returns `code`.
pub fn abort_if_joined(code: i32) {
    if JOINED.load(Ordering::SeqCst) {
        // SAFETY: MPI is initialised and not finalised; MPI_Abort does not return.
        unsafe { ffi::MPI_Abort(comm(), code) };
    }
}

impl Collective for MpiWorld {
    fn name(&self) -> &'static str {
        "MPI"
    }

    fn about(&self) -> String {
        let mut text = vec![0u8; ffi::MPI_MAX_LIBRARY_VERSION_STRING as usize];
        let (mut length, mut level): (c_int, c_int) = (0, 0);
        // SAFETY: `text` has the bytes that MPI_Get_library_version asks for; MPI is initialised.
        let asked = unsafe {
            check(
                ffi::MPI_Get_library_version(text.as_mut_ptr().cast(), &mut length),
                "MPI_Get_library_version",
            )
            .and(check(ffi::MPI_Query_thread(&mut level), "MPI_Query_thread"))
        };
        if let Err(error) = asked {
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
        self.world
    }

    fn local(&self) -> (usize, usize) {
        self.local
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<()> {
        on_host(tensor, |tensor| {
            let (count, datatype) = (count(tensor)?, datatype(tensor.kind())?);
            self.meet()?;
            // SAFETY: a contiguous CPU tensor of `count` elements of `datatype`, alive through the call.
            let code = unsafe { ffi::MPI_Bcast(tensor.data_ptr(), count, datatype, root as c_int, comm()) };
            check(code, "MPI_Bcast")
        })
    }

    fn all_reduce_sum(&self, tensor: &Tensor) -> Result<()> {
        reducible(tensor)?;
        on_host(tensor, |tensor| {
            let count = count(tensor)?;
            self.meet()?;
            if tensor.kind() == Kind::BFloat16 {
                return self.sum_bf16(tensor);
            }
            let datatype = datatype(tensor.kind())?;
            // SAFETY: as for MPI_Bcast.
            let code = unsafe {
                let (own, data, sum) = (codinet_mpi_in_place(), tensor.data_ptr(), ffi::RSMPI_SUM);
                ffi::MPI_Allreduce(own, data, count, datatype, sum, comm())
            };
            check(code, "MPI_Allreduce")
        })
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        let mine = tensor.detach().to_device(Device::Cpu).contiguous();
        let (count, datatype) = (count(&mine)?, datatype(mine.kind())?);
        let mut shape = vec![self.world as i64];
        shape.extend(mine.size());
        let all = Tensor::empty(&shape, (mine.kind(), Device::Cpu));
        self.meet()?;
        // SAFETY: `all` has room for `count` elements of every rank; both tensors are contiguous and alive.
        let code = unsafe {
            ffi::MPI_Allgather(mine.data_ptr(), count, datatype, all.data_ptr(), count, datatype, comm())
        };
        check(code, "MPI_Allgather")?;
        Ok(all.to_device(tensor.device()))
    }

    fn barrier(&self) -> Result<()> {
        self.meet()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_libtorch_does() {
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
            let theirs = Tensor::from(value).to_kind(Kind::BFloat16).to_kind(Kind::Float);
            assert_eq!(from_bf16(to_bf16(value)), f32::try_from(theirs).unwrap(), "{value}");
        }
        assert!(from_bf16(to_bf16(f32::NAN)).is_nan());
    }
}
