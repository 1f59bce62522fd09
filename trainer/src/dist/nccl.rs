//! Ranks over NCCL, each with a GPU of its own. Tensors on the host are sent by the backend that connected the ranks.
//! Not yet run on a GPU.
//!
//! The types are cudarc's. The library is opened here: cudarc does not search for `libnccl.so.2`, the file's name in NVIDIA's
//! packages, and panics if it finds no library.
#![expect(unsafe_code, reason = "NCCL is a C library")]

use super::collective::{Collective, LocalRank, check_summable};
use crate::sys::error::{Error, Exit, Result};
use crate::sys::{current_stream_handle, library_error};
use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use tch::{Device, Kind, Tensor};

/// Bytes of a communicator's id, by which its ranks find each other.
pub const ID_BYTES: usize = 128;

type ReturnCode = c_int; // not cudarc's enum, which lacks the codes of newer libraries
/// ncclInProgress: no error.
const IN_PROGRESS: ReturnCode = 7;

/// Refused; docs/decisions.md says why.
const BAD_VERSIONS: RangeInclusive<c_int> = 22_803..=22_808;

fn version_name(code: c_int) -> String {
    match code {
        10_000.. => format!("{}.{}.{}", code / 10_000, code / 100 % 100, code % 100),
        _ => format!("{}.{}.{}", code / 1000, code / 100 % 10, code % 100), // before 2.9
    }
}

/// Functions of libnccl, by <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api.html>.
pub struct Nccl {
    get_version: unsafe extern "C" fn(*mut c_int) -> ReturnCode,
    get_unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> ReturnCode,
    comm_init_rank: unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> ReturnCode,
    comm_destroy: unsafe extern "C" fn(ncclComm_t) -> ReturnCode,
    comm_abort: unsafe extern "C" fn(ncclComm_t) -> ReturnCode,
    get_async_error: unsafe extern "C" fn(ncclComm_t, *mut ReturnCode) -> ReturnCode,
    get_error_string: unsafe extern "C" fn(ReturnCode) -> *const c_char,
    get_last_error: unsafe extern "C" fn(ncclComm_t) -> *const c_char,
    all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        ncclRedOp_t,
        ncclComm_t,
        cudaStream_t,
    ) -> ReturnCode,
    all_gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        ncclComm_t,
        cudaStream_t,
    ) -> ReturnCode,
    broadcast: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        c_int,
        ncclComm_t,
        cudaStream_t,
    ) -> ReturnCode,
    _library: Library,
}

impl Nccl {
    /// Opens libnccl under either of its file names.
    pub fn open() -> Result<Self> {
        let failed = |error| {
            let what = format!(
                "cannot use NCCL: {}; put libnccl.so.2 on LD_LIBRARY_PATH, or set collective.backend=mpi",
                library_error(&error)
            );
            Error::new(Exit::Communication, what)
        };
        // SAFETY: libnccl's constructors only initialise the library; the signatures above are those of its documentation;
        // the functions are not used after the library is closed.
        unsafe {
            let library =
                Library::new("libnccl.so.2").or_else(|_| Library::new("libnccl.so")).map_err(failed)?;
            let nccl = Self {
                get_version: *library.get(b"ncclGetVersion").map_err(failed)?,
                get_unique_id: *library.get(b"ncclGetUniqueId").map_err(failed)?,
                comm_init_rank: *library.get(b"ncclCommInitRank").map_err(failed)?,
                comm_destroy: *library.get(b"ncclCommDestroy").map_err(failed)?,
                comm_abort: *library.get(b"ncclCommAbort").map_err(failed)?,
                get_async_error: *library.get(b"ncclCommGetAsyncError").map_err(failed)?,
                get_error_string: *library.get(b"ncclGetErrorString").map_err(failed)?,
                get_last_error: *library.get(b"ncclGetLastError").map_err(failed)?,
                all_reduce: *library.get(b"ncclAllReduce").map_err(failed)?,
                all_gather: *library.get(b"ncclAllGather").map_err(failed)?,
                broadcast: *library.get(b"ncclBroadcast").map_err(failed)?,
                _library: library,
            };
            nccl.refuse_bad_version()?;
            Ok(nccl)
        }
    }

    /// The library's version, such as 2.27.3.
    pub fn version(&self) -> String {
        self.version_code()
            .map_or_else(|returned| format!("unknown: ncclGetVersion returned {returned}"), version_name)
    }

    /// The version as a number, such as 22703; an error is the call's return code.
    fn version_code(&self) -> Result<c_int, ReturnCode> {
        let mut code: c_int = 0;
        // SAFETY: `code` outlives the call, which writes nothing else.
        let returned = unsafe { (self.get_version)(&mut code) };
        if returned == 0 { Ok(code) } else { Err(returned) }
    }

    fn refuse_bad_version(&self) -> Result<()> {
        match self.version_code() {
            Ok(code) if BAD_VERSIONS.contains(&code) => {
                let what = format!(
                    "NCCL {} is refused, as 2.28.3 to 2.28.8 are; install 2.28.9 or newer (libtorch 2.11's), or set \
                     collective.backend=mpi",
                    version_name(code)
                );
                Err(Error::new(Exit::Communication, what))
            }
            _ => Ok(()),
        }
    }

    /// The id of a new communicator; one rank creates it for all.
    pub fn create_id(&self) -> Result<[u8; ID_BYTES]> {
        let mut id = ncclUniqueId { internal: [0; ID_BYTES] };
        // SAFETY: `id` outlives the call.
        self.check(unsafe { (self.get_unique_id)(&mut id) }, "ncclGetUniqueId", std::ptr::null_mut())?;
        Ok(id.internal.map(|byte| byte as u8))
    }

    /// Converts a return code into a result that names the call and has the library's message.
    fn check(&self, code: ReturnCode, call: &str, comm: ncclComm_t) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: a null communicator is allowed; the result is null or a string that is copied at once.
        let text = unsafe {
            let text = (self.get_last_error)(comm);
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        let what = format!("{call} failed with code {code}: {}", text.trim());
        Err(Error::new(Exit::Communication, what))
    }

    /// What a code means, and the library's last message.
    fn describe(&self, code: ReturnCode, comm: ncclComm_t) -> String {
        // SAFETY: any code is allowed, and a living communicator; the results are null or strings that are copied at once.
        let texts = unsafe { [(self.get_error_string)(code), (self.get_last_error)(comm)] };
        let texts = texts.into_iter().filter(|text| !text.is_null());
        // SAFETY: as above.
        let texts = texts.map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned());
        texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(": ")
    }
}

/// An NCCL communicator of all ranks. Only the thread of collectives has it.
pub struct Comm {
    shared: Arc<SharedComm>,
    device: usize,
}

/// The part of a communicator that the watchdog uses too.
struct SharedComm {
    nccl: Nccl,
    comm: ncclComm_t,
    /// Whether the communicator has been destroyed or aborted.
    ended: Mutex<bool>,
}

// SAFETY: NCCL allows that one thread asks for asynchronous errors, or aborts, while another one starts collectives; that is
// what its documentation gives these functions for. Only the owner of `Comm` starts collectives. `ended` keeps a communicator
// from being used by the other thread after its end.
unsafe impl Send for SharedComm {}
// SAFETY: as above.
unsafe impl Sync for SharedComm {}

/// Watches a communicator from another thread.
#[derive(Clone)]
pub struct CommMonitor(Arc<SharedComm>);

impl fmt::Debug for CommMonitor {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("CommMonitor").finish_non_exhaustive()
    }
}

impl CommMonitor {
    /// The error with which NCCL's own threads have given up a collective, such as a lost network; `None` if there is none.
    pub fn async_error(&self) -> Option<String> {
        let ended = self.0.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if *ended {
            return None;
        }
        let SharedComm { nccl, comm, .. } = &*self.0;
        let mut code: ReturnCode = 0;
        // SAFETY: the communicator has not ended; room for the code that is written.
        let returned = unsafe { (nccl.get_async_error)(*comm, &mut code) };
        let code = if returned == 0 { code } else { returned };
        if code == 0 || code == IN_PROGRESS { None } else { Some(nccl.describe(code, *comm)) }
    }

    /// Ends collectives that hang on the device, and the communicator: nobody may use it any more.
    pub fn abort(&self) {
        let mut ended = self.0.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *ended, true) {
            // SAFETY: the communicator has not ended. The job ends, so no collective follows.
            let _ = unsafe { (self.0.nccl.comm_abort)(self.0.comm) };
        }
    }
}

/// Sends tensors on the GPU over NCCL, and those on the host over another backend.
pub struct NcclWorld {
    comm: Comm,
    host: Box<dyn Collective>,
}

/// The NCCL datatype of a tensor's elements.
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
    /// All ranks, on the thread of collectives, whose current device is `device`: returns when all ranks have joined.
    pub fn join(nccl: Nccl, id: [u8; ID_BYTES], device: usize, rank: usize, ranks: usize) -> Result<Self> {
        let id = ncclUniqueId { internal: id.map(|byte| byte as c_char) };
        let mut comm: ncclComm_t = std::ptr::null_mut();
        // SAFETY: `comm` outlives the call; every rank passes its own rank and the same id.
        let code = unsafe { (nccl.comm_init_rank)(&mut comm, ranks as c_int, id, rank as c_int) };
        nccl.check(code, "ncclCommInitRank", std::ptr::null_mut())?;
        Ok(Self { shared: Arc::new(SharedComm { nccl, comm, ended: Mutex::new(false) }), device })
    }

    /// For the watchdog.
    pub fn monitor(&self) -> CommMonitor {
        CommMonitor(self.shared.clone())
    }

    /// Whether NCCL can send a tensor without a copy.
    fn can_send(&self, tensor: &Tensor) -> bool {
        tensor.device() == Device::Cuda(self.device) && tensor.is_contiguous()
    }

    fn stream(&self) -> cudaStream_t {
        current_stream_handle(self.device).cast()
    }

    fn check(&self, code: ReturnCode, call: &str) -> Result<()> {
        self.shared.nccl.check(code, call, self.shared.comm)
    }
}

impl NcclWorld {
    /// `host` sends tensors that are not on the GPU.
    pub fn new(comm: Comm, host: Box<dyn Collective>) -> Self {
        Self { comm, host }
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        let mut ended = self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if std::thread::panicking() || std::mem::replace(&mut *ended, true) {
            return;
        }
        let SharedComm { nccl, comm, .. } = &*self.shared;
        // SAFETY: no other thread uses the communicator once it has ended. The call itself waits for collectives that are still
        // queued on the device.
        let code = unsafe { (nccl.comm_destroy)(*comm) };
        if let Err(error) = nccl.check(code, "ncclCommDestroy", std::ptr::null_mut()) {
            crate::eprint_line!("note: {error}"); // training is over
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

    fn local_rank(&self) -> LocalRank {
        self.host.local_rank()
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<()> {
        let SharedComm { nccl, comm, .. } = &*self.comm.shared;
        if !self.comm.can_send(tensor) {
            return self.host.broadcast(tensor, root);
        }
        let data = tensor.data_ptr();
        let n = tensor.numel();
        let kind = datatype(tensor.kind())?;
        // SAFETY: a contiguous tensor of n elements on the communicator's device. Its owner makes the stream that uses it
        // next wait for this one (`Pending::wait`), so that its memory is not reused before. If the owner never does, the job
        // is ending.
        let code = unsafe { (nccl.broadcast)(data, data, n, kind, root as c_int, *comm, self.comm.stream()) };
        self.comm.check(code, "ncclBroadcast")
    }

    fn all_reduce_sum(&self, tensor: &Tensor) -> Result<()> {
        check_summable(tensor)?;
        let SharedComm { nccl, comm, .. } = &*self.comm.shared;
        if !self.comm.can_send(tensor) {
            return self.host.all_reduce_sum(tensor);
        }
        let data = tensor.data_ptr();
        let n = tensor.numel();
        let kind = datatype(tensor.kind())?;
        let sum = ncclRedOp_t::ncclSum;
        let stream = self.comm.stream();
        // SAFETY: as for ncclBroadcast; in place is allowed.
        let code = unsafe { (nccl.all_reduce)(data, data, n, kind, sum, *comm, stream) };
        self.comm.check(code, "ncclAllReduce")
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        let SharedComm { nccl, comm, .. } = &*self.comm.shared;
        if tensor.device() != Device::Cuda(self.comm.device) {
            return self.host.all_gather(tensor);
        }
        let own = tensor.detach().contiguous();
        let kind = datatype(own.kind())?;
        let mut shape = vec![self.ranks() as i64];
        shape.extend(own.size());
        let all = Tensor::empty(&shape, (own.kind(), own.device()));
        let from = own.data_ptr();
        let to = all.data_ptr();
        let n = own.numel();
        // SAFETY: `all` has room for n elements of every rank; otherwise as for ncclBroadcast. `own` may be freed before
        // the work is done: if it is a copy, the allocator reuses its memory only on this stream, on which `all` was made too;
        // else it is the caller's tensor.
        let code = unsafe { (nccl.all_gather)(from, to, n, kind, *comm, self.comm.stream()) };
        self.comm.check(code, "ncclAllGather")?;
        Ok(all)
    }

    fn barrier(&self) -> Result<()> {
        self.host.barrier()
    }
}
