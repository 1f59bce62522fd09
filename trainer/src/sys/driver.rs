//! NVIDIA's driver, `libcuda.so.1`, opened at run time because the program also runs without one, where cudarc panics. Only
//! the case of no driver has been tested: no machine with a GPU has run it yet.
#![expect(unsafe_code, reason = "the driver is a C library")]

use libloading::Library;
use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::null;

/// An object of the driver or of NVRTC.
pub type Handle = *mut c_void;

/// The driver functions that this program calls; see <https://docs.nvidia.com/cuda/cuda-driver-api/>.
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
    get_name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int,
    get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    error_string: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
    _library: Library,
}

/// Opens the first of `names` that can be loaded. The error says why each of those that exist could not.
pub fn open_library(names: &[&str]) -> Result<Library, String> {
    let mut reasons = Vec::new();
    for name in names {
        // SAFETY: NVIDIA's libraries' constructors set up the libraries themselves and nothing else.
        match unsafe { Library::new(*name) } {
            Ok(library) => return Ok(library),
            Err(error) => reasons.push(library_error(&error)),
        }
    }
    let is_missing =
        |reason: &String| names.iter().any(|name| reason.starts_with(&format!("{name}: cannot open")));
    reasons.retain(|reason| !is_missing(reason));
    Err(if reasons.is_empty() {
        format!("found none of {} (LD_LIBRARY_PATH can name its folder)", names.join(", "))
    } else {
        format!("cannot load {}", reasons.join("; "))
    })
}

/// The system's own message for a library that cannot be opened or lacks a function.
pub fn library_error(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// Finds function `name` of `library`.
///
/// # Safety
/// `F` is its signature, and it is not called after the library is closed.
pub unsafe fn load_function<F: Copy>(library: &Library, name: &str) -> Result<F, String> {
    // SAFETY: as the caller guarantees.
    unsafe { library.get::<F>(name.as_bytes()) }.map(|found| *found).map_err(|error| library_error(&error))
}

impl Driver {
    /// Opens the driver's library, which exists where a driver is installed.
    pub fn open() -> Result<Self, String> {
        let library = open_library(&["libcuda.so.1"])?;
        let l = &library;
        // SAFETY: the signatures are those of the driver's documentation; `_library` keeps the library open.
        unsafe {
            Ok(Self {
                init: load_function(l, "cuInit")?,
                get_device: load_function(l, "cuDeviceGet")?,
                get_attribute: load_function(l, "cuDeviceGetAttribute")?,
                retain_primary: load_function(l, "cuDevicePrimaryCtxRetain")?,
                push_context: load_function(l, "cuCtxPushCurrent_v2")?,
                pop_context: load_function(l, "cuCtxPopCurrent_v2")?,
                load_module: load_function(l, "cuModuleLoadData")?,
                get_function: load_function(l, "cuModuleGetFunction")?,
                launch_kernel: load_function(l, "cuLaunchKernel")?,
                get_uuid: load_function(l, "cuDeviceGetUuid_v2")?,
                get_name: load_function(l, "cuDeviceGetName")?,
                get_version: load_function(l, "cuDriverGetVersion")?,
                error_string: load_function(l, "cuGetErrorString")?,
                _library: library,
            })
        }
    }

    /// Turns a return code into a result whose error names the call and has the driver's own message.
    pub fn check(&self, code: c_int, call: &str) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let mut text = null();
        // SAFETY: room for an address, which stays null or becomes that of a string in the library.
        let text = unsafe {
            (self.error_string)(code, &mut text);
            if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        Err(format!("{call} failed with code {code}: {text}"))
    }

    /// The newest CUDA that the driver supports, such as "13.0".
    pub fn cuda_version(&self) -> Result<String, String> {
        let mut code = 0;
        // SAFETY: room for the number that is written.
        self.check(unsafe { (self.get_version)(&mut code) }, "cuDriverGetVersion")?;
        Ok(format!("{}.{}", code / 1000, code % 1000 / 10))
    }

    /// The driver's handle of the GPU that libtorch knows by `number`.
    pub fn device(&self, number: usize) -> Result<c_int, String> {
        let mut handle = 0;
        // SAFETY: plain numbers; room for the handle that is written.
        unsafe {
            self.check((self.init)(0), "cuInit")?;
            self.check((self.get_device)(&mut handle, number as c_int), "cuDeviceGet")?;
        }
        Ok(handle)
    }

    /// A GPU's name, such as "NVIDIA H200".
    pub fn name(&self, number: usize) -> Result<String, String> {
        let device = self.device(number)?;
        let mut name = [0_u8; 256];
        // SAFETY: a device's handle; the driver writes at most the given length, the last byte a zero.
        let code = unsafe { (self.get_name)(name.as_mut_ptr().cast(), name.len() as c_int, device) };
        self.check(code, "cuDeviceGetName")?;
        let name = CStr::from_bytes_until_nul(&name).map_err(|error| error.to_string())?;
        Ok(name.to_string_lossy().into_owned())
    }

    /// The UUID of a GPU, or of a part of one, in hexadecimal digits. A number does not identify a GPU: each rank may see its
    /// own as number 0.
    pub fn uuid(&self, number: usize) -> Result<String, String> {
        let device = self.device(number)?;
        let mut uuid = [0; 16];
        // SAFETY: a device's handle; room for the 16 bytes that are written.
        self.check(unsafe { (self.get_uuid)(&mut uuid, device) }, "cuDeviceGetUuid")?;
        Ok(uuid.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_broken_libraries_have_different_reasons() {
        let folder = tempfile::tempdir().unwrap();
        let broken = folder.path().join("libbroken.so");
        std::fs::write(&broken, "no library").unwrap();
        let missing = open_library(&["libmissing_1.so", "libmissing_2.so"]).unwrap_err();
        assert!(missing.starts_with("found none of libmissing_1.so, libmissing_2.so"), "{missing}");
        let reason = open_library(&["libmissing_1.so", broken.to_str().unwrap()]).unwrap_err();
        assert!(reason.starts_with("cannot load ") && reason.contains("libbroken.so"), "{reason}");
        assert!(!reason.contains("libmissing_1"), "{reason}");
    }
}
