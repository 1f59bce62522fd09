//! Ranks over NCCL, each with a GPU of its own; what lies on the host still goes the way that it went before. Untested:
//! no machine with a GPU has run it yet.
//!
//! Types are cudarc's; the library is opened here, for cudarc does not look for `libnccl.so.2`, the name that NVIDIA's
//! packages give it, and panics where it finds none.
#![expect(unsafe_code, reason = "NCCL is a C library")]

use super::{Collective, reducible};
use crate::sys::error::{Error, Exit, Result};
use crate::sys::{current_stream_handle, library_error};
use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use tch::{Device, Kind, Tensor};

/// Bytes of the number by which ranks find one another.
pub const ID_BYTES: usize = 128;

type Return = c_int; // not cudarc's enum: a library newer than it may return what it does not know

/// The functions of libnccl that are used here, by <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api.html>.
pub struct Nccl {
    get_version: unsafe extern "C" fn(*mut c_int) -> Return,
    get_unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> Return,
    comm_init_rank: unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> Return,
    comm_destroy: unsafe extern "C" fn(ncclComm_t) -> Return,
    get_last_error: unsafe extern "C" fn(ncclComm_t) -> *const c_char,
    all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        ncclRedOp_t,
        ncclComm_t,
        cudaStream_t,
    ) -> Return,
    all_gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        ncclComm_t,
        cudaStream_t,
    ) -> Return,
    broadcast: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        c_int,
        ncclComm_t,
        cudaStream_t,
    ) -> Return,
    _library: Library,
}

impl Nccl {
    /// Opens libnccl by either of its names.
    pub fn open() -> Result<Self> {
        let failed = |error| {
            let what = format!(
                "cannot use NCCL: {}; put libnccl.so.2 on LD_LIBRARY_PATH, or set collective.backend=mpi",
                library_error(&error)
            );
            Error::new(Exit::Communication, what)
        };
        // SAFETY: libnccl's constructors set up the library itself and nothing else; the signatures above are those of
        // its documentation; the functions are used no longer than the library lives.
        unsafe {
            let library =
                Library::new("libnccl.so.2").or_else(|_| Library::new("libnccl.so")).map_err(failed)?;
            Ok(Self {
                get_version: *library.get(b"ncclGetVersion").map_err(failed)?,
                get_unique_id: *library.get(b"ncclGetUniqueId").map_err(failed)?,
                comm_init_rank: *library.get(b"ncclCommInitRank").map_err(failed)?,
                comm_destroy: *library.get(b"ncclCommDestroy").map_err(failed)?,
                get_last_error: *library.get(b"ncclGetLastError").map_err(failed)?,
                all_reduce: *library.get(b"ncclAllReduce").map_err(failed)?,
                all_gather: *library.get(b"ncclAllGather").map_err(failed)?,
                broadcast: *library.get(b"ncclBroadcast").map_err(failed)?,
                _library: library,
            })
        }
    }

    /// The library's version, such as 2.27.3.
    pub fn version(&self) -> String {
        let mut code: c_int = 0;
        // SAFETY: `code` outlives the call, which writes nothing else.
        let returned = unsafe { (self.get_version)(&mut code) };
        match code {
            _ if returned != 0 => format!("unknown: ncclGetVersion returned {returned}"),
            10_000.. => format!("{}.{}.{}", code / 10_000, code / 100 % 100, code % 100),
            _ => format!("{}.{}.{}", code / 1000, code / 100 % 10, code % 100), // before 2.9
        }
    }

    /// A number for ranks to find one another by; made by one of them.
    pub fn new_id(&self) -> Result<[u8; ID_BYTES]> {
        let mut id = ncclUniqueId { internal: [0; ID_BYTES] };
        // SAFETY: `id` outlives the call.
        self.check(unsafe { (self.get_unique_id)(&mut id) }, "ncclGetUniqueId", std::ptr::null_mut())?;
        Ok(id.internal.map(|byte| byte as u8))
    }

    /// Turns a return code into a result that names the call and gives the library's own words.
    fn check(&self, code: Return, call: &str, comm: ncclComm_t) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: null is allowed; the result is null or a string that is copied at once.
        let text = unsafe {
            let text = (self.get_last_error)(comm);
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        let what = format!("{call} failed with code {code}: {}", text.trim());
        Err(Error::new(Exit::Communication, what))
    }
}

/// An NCCL communicator of all ranks.
pub struct Comm {
    nccl: Nccl,
    comm: ncclComm_t,
    device: usize,
}

// SAFETY: a communicator may be used from any thread, by one at a time; it is owned, and not shared.
unsafe impl Send for Comm {}

/// GPUs' tensors by NCCL, the host's by the backend from before.
pub struct NcclWorld {
    comm: Comm,
    host: Box<dyn Collective>,
}

/// NCCL's name for a kind of elements.
fn datatype(kind: Kind) -> Result<ncclDataType_t> {
    match kind {
        Kind::Float => Ok(ncclDataType_t::ncclFloat32),
        Kind::Double => Ok(ncclDataType_t::ncclFloat64),
        Kind::BFloat16 => Ok(ncclDataType_t::ncclBfloat16),
        Kind::Int64 => Ok(ncclDataType_t::ncclInt64),
        Kind::Uint8 | Kind::Bool => Ok(ncclDataType_t::ncclUint8),
        _ => Err(Error::new(Exit::Communication, format!("cannot send tensors of {kind:?}"))),
    }
}

impl Comm {
    /// All ranks, each rank of `world`, on the thread of collectives, whose current device is `device`.
    pub fn join(nccl: Nccl, id: [u8; ID_BYTES], device: usize, rank: usize, world: usize) -> Result<Self> {
        let id = ncclUniqueId { internal: id.map(|byte| byte as c_char) };
        let mut comm: ncclComm_t = std::ptr::null_mut();
        // SAFETY: `comm` outlives the call; every rank passes its own number and the same id.
        let code = unsafe { (nccl.comm_init_rank)(&mut comm, world as c_int, id, rank as c_int) };
        nccl.check(code, "ncclCommInitRank", std::ptr::null_mut())?;
        Ok(Self { nccl, comm, device })
    }

    /// Whether a tensor can travel as it lies.
    fn takes(&self, tensor: &Tensor) -> bool {
        tensor.device() == Device::Cuda(self.device) && tensor.is_contiguous()
    }

    fn stream(&self) -> cudaStream_t {
        current_stream_handle(self.device).cast()
    }

    fn check(&self, code: Return, call: &str) -> Result<()> {
        self.nccl.check(code, call, self.comm)
    }
}

impl NcclWorld {
    /// `host` carries what does not lie on the GPU.
    pub fn new(comm: Comm, host: Box<dyn Collective>) -> Self {
        Self { comm, host }
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: the communicator is this one's own, and no collective is under way: each was waited for.
            let code = unsafe { (self.nccl.comm_destroy)(self.comm) };
            if let Err(error) = self.nccl.check(code, "ncclCommDestroy", std::ptr::null_mut()) {
                eprintln!("note: {error}"); // training is over
            }
        }
    }
}

impl Collective for NcclWorld {
    fn name(&self) -> &'static str {
        "NCCL"
    }

    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn ranks(&self) -> usize {
        self.host.ranks()
    }

    fn local(&self) -> (usize, usize) {
        self.host.local()
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<()> {
        let Comm { nccl, comm, .. } = &self.comm;
        if !self.comm.takes(tensor) {
            return self.host.broadcast(tensor, root);
        }
        let (data, n, kind) = (tensor.data_ptr(), tensor.numel(), datatype(tensor.kind())?);
        // SAFETY: a contiguous tensor of n elements on the communicator's device, alive until the stream has done the
        // work, since whoever started the collective waits for it.
        let code = unsafe { (nccl.broadcast)(data, data, n, kind, root as c_int, *comm, self.comm.stream()) };
        self.comm.check(code, "ncclBroadcast")
    }

    fn all_reduce_sum(&self, tensor: &Tensor) -> Result<()> {
        reducible(tensor)?;
        let Comm { nccl, comm, .. } = &self.comm;
        if !self.comm.takes(tensor) {
            return self.host.all_reduce_sum(tensor);
        }
        let (data, n, kind) = (tensor.data_ptr(), tensor.numel(), datatype(tensor.kind())?);
        let (sum, stream) = (ncclRedOp_t::ncclSum, self.comm.stream());
        // SAFETY: as for ncclBroadcast; in place is allowed.
        let code = unsafe { (nccl.all_reduce)(data, data, n, kind, sum, *comm, stream) };
        self.comm.check(code, "ncclAllReduce")
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        let Comm { nccl, comm, device } = &self.comm;
        if tensor.device() != Device::Cuda(*device) {
            return self.host.all_gather(tensor);
        }
        let (mine, kind) = (tensor.detach().contiguous(), datatype(tensor.kind())?);
        let mut shape = vec![self.ranks() as i64];
        shape.extend(mine.size());
        let all = Tensor::empty(&shape, (mine.kind(), mine.device()));
        let (from, to, n) = (mine.data_ptr(), all.data_ptr(), mine.numel());
        // SAFETY: `all` has room for n elements of every rank; as for ncclBroadcast otherwise. `mine` may be freed before
        // the work is done: the allocator gives its memory to this stream alone.
        let code = unsafe { (nccl.all_gather)(from, to, n, kind, *comm, self.comm.stream()) };
        self.comm.check(code, "ncclAllGather")?;
        Ok(all)
    }

    fn barrier(&self) -> Result<()> {
        self.host.barrier()
    }
}
