//! NVIDIA's driver: the functions of `libcuda.so.1` that are used here. Only the case of no driver has been tested: no machine
//! with a GPU has run it yet.
//!
//! The library is opened when it is needed, for the program runs where there is none too, and cudarc panics there.
#![expect(unsafe_code, reason = "the driver is a C library")]

use libloading::Library;
use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::null;

/// What the driver, or NVRTC, calls a thing by.
pub type Handle = *mut c_void;

/// The functions of the driver that are used here, by <https://docs.nvidia.com/cuda/cuda-driver-api/>.
pub struct Driver {
    init: unsafe extern "C" fn(c_uint) -> c_int,
    get_device: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
    pub get_attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
    pub retain_primary: unsafe extern "C" fn(*mut Handle, c_int) -> c_int,
    pub push_context: unsafe extern "C" fn(Handle) -> c_int,
    pub pop_context: unsafe extern "C" fn(*mut Handle) -> c_int,
    pub load_module: unsafe extern "C" fn(*mut Handle, *const c_void) -> c_int,
    pub get_function: unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> c_int,
    pub launch_kernel: unsafe extern "C" fn(
        Handle,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        Handle,
        *mut *mut c_void,
        *mut *mut c_void,
    ) -> c_int,
    get_uuid: unsafe extern "C" fn(*mut [u8; 16], c_int) -> c_int,
    error_string: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
    _library: Library,
}

/// Opens the first of `names` that there is.
pub fn open(names: &[&str]) -> Result<Library, String> {
    // SAFETY: NVIDIA's libraries' constructors set up the libraries themselves and nothing else.
    let found = names.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    found.ok_or_else(|| format!("found none of {} (LD_LIBRARY_PATH may lead to one)", names.join(", ")))
}

/// Why a library cannot be opened, or lacks a function: the system's own words.
pub fn why(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// A function of `library`.
///
/// # Safety
/// `F` is its signature, and it is called no longer than the library lives.
pub unsafe fn function<F: Copy>(library: &Library, name: &str) -> Result<F, String> {
    // SAFETY: the caller answers for it.
    unsafe { library.get::<F>(name.as_bytes()) }.map(|found| *found).map_err(|error| why(&error))
}

impl Driver {
    /// Opens the driver's library, of which there is one, where there is a driver.
    pub fn open() -> Result<Self, String> {
        let library = open(&["libcuda.so.1"])?;
        let l = &library;
        // SAFETY: the signatures of the driver's documentation; the library is kept beside them.
        unsafe {
            Ok(Self {
                init: function(l, "cuInit")?,
                get_device: function(l, "cuDeviceGet")?,
                get_attribute: function(l, "cuDeviceGetAttribute")?,
                retain_primary: function(l, "cuDevicePrimaryCtxRetain")?,
                push_context: function(l, "cuCtxPushCurrent_v2")?,
                pop_context: function(l, "cuCtxPopCurrent_v2")?,
                load_module: function(l, "cuModuleLoadData")?,
                get_function: function(l, "cuModuleGetFunction")?,
                launch_kernel: function(l, "cuLaunchKernel")?,
                get_uuid: function(l, "cuDeviceGetUuid_v2")?,
                error_string: function(l, "cuGetErrorString")?,
                _library: library,
            })
        }
    }

    /// Turns a return code into a result that names the call and gives the driver's own words.
    pub fn check(&self, code: c_int, call: &str) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let mut text = null();
        // SAFETY: room for an address, which stays null or becomes that of a string of the library's own.
        let text = unsafe {
            (self.error_string)(code, &mut text);
            if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        Err(format!("{call} failed with code {code}: {text}"))
    }

    /// The driver's handle of a GPU, by libtorch's number for it.
    pub fn device(&self, number: usize) -> Result<c_int, String> {
        let mut handle = 0;
        // SAFETY: plain numbers; room for the handle that is written.
        unsafe {
            self.check((self.init)(0), "cuInit")?;
            self.check((self.get_device)(&mut handle, number as c_int), "cuDeviceGet")?;
        }
        Ok(handle)
    }

    /// What tells this GPU, or this part of one, from all others, in hexadecimal digits; the number does not where each rank
    /// is shown its own GPU as number 0.
    pub fn uuid(&self, number: usize) -> Result<String, String> {
        let (device, mut uuid) = (self.device(number)?, [0; 16]);
        // SAFETY: a device's handle; room for the 16 bytes that are written.
        self.check(unsafe { (self.get_uuid)(&mut uuid, device) }, "cuDeviceGetUuid")?;
        Ok(uuid.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}
