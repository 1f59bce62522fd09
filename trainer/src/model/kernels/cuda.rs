//! A GPU that runs `kernels.cu`: NVRTC compiles them when the program starts, the driver launches them on libtorch's stream.
//! Compiling is tested on machines with NVRTC. Launching is untested: no machine with a GPU has run it yet.
//!
//! NVRTC is opened here because cudarc panics if it is missing.
#![expect(unsafe_code, reason = "NVRTC and the driver are C libraries")]

use super::code_cache;
use super::gpu::{self, Launch, THREADS, Task};
use crate::sys::{Driver, Handle, current_stream_handle, load_function, open_library};
use libloading::Library;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::path::Path;
use std::ptr::{null, null_mut};

const SOURCE: &str = include_str!("kernels.cu");

/// The NVRTC functions that are called here; see <https://docs.nvidia.com/cuda/nvrtc/>.
struct Nvrtc {
    create_program: unsafe extern "C" fn(
        *mut Handle,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile_program: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> c_int,
    destroy_program: unsafe extern "C" fn(*mut Handle) -> c_int,
    log: BytesGetter,
    cubin: BytesGetter,
    ptx: BytesGetter,
    count_archs: unsafe extern "C" fn(*mut c_int) -> c_int,
    archs: unsafe extern "C" fn(*mut c_int) -> c_int,
    get_version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    _library: Library,
}

/// The two functions that return a program's bytes: their number, then the bytes.
#[derive(Clone, Copy)]
struct BytesGetter {
    size: unsafe extern "C" fn(Handle, *mut usize) -> c_int,
    get: unsafe extern "C" fn(Handle, *mut c_char) -> c_int,
}

impl Nvrtc {
    /// Prefers libtorch's own: libcaffe2_nvrtc.so loads the NVRTC that it is linked with, which then finds its builtins. By itself
    /// the libnvrtc.so of a wheel does not find them.
    fn open() -> Result<Self, String> {
        let library =
            open_library(&["libcaffe2_nvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"])?;
        let l = &library;
        // SAFETY: the signatures are those of NVRTC's documentation; `_library` keeps the library open.
        unsafe {
            let getter = |what: &str| {
                let size = load_function(l, &format!("nvrtcGet{what}Size"))?;
                let get = load_function(l, &format!("nvrtcGet{what}"))?;
                Ok::<_, String>(BytesGetter { size, get })
            };
            Ok(Self {
                create_program: load_function(l, "nvrtcCreateProgram")?,
                compile_program: load_function(l, "nvrtcCompileProgram")?,
                destroy_program: load_function(l, "nvrtcDestroyProgram")?,
                log: getter("ProgramLog")?,
                cubin: getter("CUBIN")?,
                ptx: getter("PTX")?,
                count_archs: load_function(l, "nvrtcGetNumSupportedArchs")?,
                archs: load_function(l, "nvrtcGetSupportedArchs")?,
                get_version: load_function(l, "nvrtcVersion")?,
                error_string: load_function(l, "nvrtcGetErrorString")?,
                _library: library,
            })
        }
    }

    fn check(&self, code: c_int, call: &str) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: any number is allowed; the result is a string in the library.
        let text = unsafe { CStr::from_ptr((self.error_string)(code)) }.to_string_lossy();
        Err(format!("{call} failed with code {code}: {text}"))
    }

    /// [`Nvrtc::compile`], unless `cache` has the result.
    fn compile_cached(
        &self,
        cache: Option<&Path>,
        source: &str,
        capability: c_int,
    ) -> Result<Vec<u8>, String> {
        let mut version = [0; 2];
        let [major, minor] = &mut version;
        // SAFETY: room for the numbers that are written.
        self.check(unsafe { (self.get_version)(major, minor) }, "nvrtcVersion")?;
        let key = [source, &format!("{version:?}"), &capability.to_string()];
        code_cache::get_or_compile(cache, &key, || Ok(self.compile(source, capability, &[])?.0))
    }

    /// Compiles for a GPU of compute capability `capability`, such as 90: to its machine code, or with an NVRTC older than the
    /// GPU to the newest PTX that this NVRTC knows, which the driver compiles. Also returns the compiler's remarks.
    fn compile(
        &self,
        source: &str,
        capability: c_int,
        more_options: &[&str],
    ) -> Result<(Vec<u8>, String), String> {
        let mut count = 0;
        // SAFETY: room for the number that is written.
        self.check(unsafe { (self.count_archs)(&mut count) }, "nvrtcGetNumSupportedArchs")?;
        let mut archs = vec![0; count as usize];
        // SAFETY: room for `count` numbers.
        self.check(unsafe { (self.archs)(archs.as_mut_ptr()) }, "nvrtcGetSupportedArchs")?;
        let nearest = archs.into_iter().filter(|&arch| arch <= capability).max();
        let nearest =
            nearest.ok_or_else(|| format!("NVRTC no longer supports compute capability {capability}"))?;
        let (arch, code) = if nearest == capability { ("sm", self.cubin) } else { ("compute", self.ptx) };

        let source = CString::new(source).expect("no NUL in the source");
        let mut program = null_mut();
        // SAFETY: NUL-terminated strings that outlive the call, and no headers.
        let created = unsafe {
            let name = c"kernels.cu".as_ptr();
            (self.create_program)(&mut program, source.as_ptr(), name, 0, null(), null())
        };
        self.check(created, "nvrtcCreateProgram")?;
        let arch = format!("--gpu-architecture={arch}_{nearest}");
        let options = ["--std=c++17", &arch].into_iter().chain(more_options.iter().copied());
        let options: Vec<CString> = options.map(|option| CString::new(option).expect("no NUL")).collect();
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: a living program; an array of NUL-terminated strings of the length given.
        let compiled = unsafe { (self.compile_program)(program, pointers.len() as c_int, pointers.as_ptr()) };
        let log = self.get_bytes(self.log, program).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned();
        let result = match self.check(compiled, "nvrtcCompileProgram") {
            Ok(()) => self.get_bytes(code, program).map(|code| (code, log)),
            Err(error) => Err(format!("{error}: {log}")),
        };
        // SAFETY: destroyed once, and not used again.
        let destroyed = unsafe { (self.destroy_program)(&mut program) };
        self.check(destroyed, "nvrtcDestroyProgram")?;
        result
    }

    fn get_bytes(&self, getter: BytesGetter, program: Handle) -> Result<Vec<u8>, String> {
        let mut size = 0;
        // SAFETY: a living program, and room for the number that is written.
        self.check(unsafe { (getter.size)(program, &mut size) }, "reading the size of NVRTC's result")?;
        let mut bytes = vec![0_u8; size];
        // SAFETY: room for `size` bytes.
        self.check(unsafe { (getter.get)(program, bytes.as_mut_ptr().cast()) }, "reading NVRTC's result")?;
        Ok(bytes)
    }
}

/// A GPU with the kernels loaded.
pub struct Cuda {
    driver: Driver,
    device: usize,
    /// The device's primary context, which libtorch uses too.
    context: Handle,
    functions: HashMap<String, Handle>,
}

// SAFETY: several threads may use contexts and functions at a time; nothing here changes.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

impl Cuda {
    /// Compiles the kernels for the GPU that libtorch knows as `device`, and loads them there.
    pub fn new(device: usize) -> Result<Self, String> {
        let driver = Driver::open()?;
        let handle = driver.device(device)?;
        let mut capability = [0; 2];
        let mut context = null_mut();
        for (number, attribute) in capability.iter_mut().zip([75, 76]) {
            // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
            // SAFETY: a device's handle; room for the number that is written.
            let read = unsafe { (driver.get_attribute)(number, attribute, handle) };
            driver.check(read, "cuDeviceGetAttribute")?;
        }
        let cache = code_cache::folder();
        let code =
            Nvrtc::open()?.compile_cached(cache.as_deref(), SOURCE, 10 * capability[0] + capability[1])?;
        // SAFETY: as above; the context is never released.
        let retained = unsafe { (driver.retain_primary)(&mut context, handle) };
        driver.check(retained, "cuDevicePrimaryCtxRetain")?;
        let mut cuda = Self { driver, device, context, functions: HashMap::new() };
        cuda.functions = cuda.with_context(|driver| {
            let mut module = null_mut();
            // SAFETY: machine code, or PTX with its NUL, as NVRTC gave it; the module is never unloaded.
            let loaded = unsafe { (driver.load_module)(&mut module, code.as_ptr().cast()) };
            driver.check(loaded, "cuModuleLoadData")?;
            let find = |name: String| {
                let mut function = null_mut();
                let text = CString::new(&*name).expect("no NUL");
                // SAFETY: a loaded module and a NUL-terminated string.
                let found = unsafe { (driver.get_function)(&mut function, module, text.as_ptr()) };
                driver.check(found, &format!("cuModuleGetFunction of {name}")).map(|()| (name, function))
            };
            gpu::kernel_names().into_iter().map(find).collect()
        })?;
        Ok(cuda)
    }

    /// libtorch's number for the GPU.
    pub fn device(&self) -> usize {
        self.device
    }

    /// Runs `act` with the GPU's context as this thread's current one, and restores the previous one. A thread may have none, if
    /// libtorch has served all its requests from its cache.
    fn with_context<R>(&self, act: impl FnOnce(&Driver) -> Result<R, String>) -> Result<R, String> {
        // SAFETY: a retained context.
        self.driver.check(unsafe { (self.driver.push_context)(self.context) }, "cuCtxPushCurrent")?;
        let result = act(&self.driver);
        let mut popped = null_mut();
        // SAFETY: room for the handle that is written.
        self.driver.check(unsafe { (self.driver.pop_context)(&mut popped) }, "cuCtxPopCurrent")?;
        result
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Cuda").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Launch for Cuda {
    /// On this thread's current stream, which on an autograd thread is the forward pass's.
    unsafe fn launch(&self, kernel: &str, blocks: i64, task: &Task) {
        let blocks = c_uint::try_from(blocks).expect("fewer blocks than 2³¹");
        let function = self.functions[kernel];
        let stream = current_stream_handle(self.device);
        let mut parameters = [std::ptr::from_ref(task).cast_mut().cast::<c_void>()];
        let launched = self.with_context(|driver| {
            // SAFETY: one parameter, a Task, which the call copies; no dynamic shared memory. The caller guarantees the memory that
            // the task names.
            let returned = unsafe {
                let parameters = parameters.as_mut_ptr();
                let threads = THREADS as c_uint;
                (driver.launch_kernel)(
                    function,
                    blocks,
                    1,
                    1,
                    threads,
                    1,
                    1,
                    0,
                    stream,
                    parameters,
                    null_mut(),
                )
            };
            driver.check(returned, "cuLaunchKernel")
        });
        launched.unwrap_or_else(|error| panic!("{kernel}: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_without_a_driver_names_the_missing_library() {
        match Driver::open() {
            Ok(_) => println!("skipped: there is a driver"),
            Err(_) => assert!(Cuda::new(0).unwrap_err().contains("libcuda.so.1")),
        }
    }

    /// To machine code for three generations, and to PTX for one that does not exist yet. An error names its line.
    #[test]
    fn nvrtc_compiles_all_kernels_without_spilled_registers() {
        let nvrtc = match Nvrtc::open() {
            Ok(nvrtc) => nvrtc,
            Err(reason) => return println!("skipped: {reason}"),
        };
        for capability in [80, 90, 100, 9999] {
            let (code, remarks) = nvrtc.compile(SOURCE, capability, &["--ptxas-options=-v"]).unwrap();
            let text = String::from_utf8_lossy(&code);
            assert_eq!(code.starts_with(b"\x7fELF"), capability != 9999, "{capability}");
            for name in gpu::kernel_names() {
                assert!(text.contains(&name), "{name} for {capability}");
            }
            println!("compute capability {capability}: {} bytes\n{remarks}", code.len());
            let stacks: Vec<&str> = remarks.lines().filter(|line| line.contains("stack frame")).collect();
            assert_eq!(stacks.len(), if capability == 9999 { 0 } else { gpu::kernel_names().len() });
            for stack in stacks {
                assert!(
                    stack.ends_with(" 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"),
                    "{stack}"
                );
            }
        }
        let error = nvrtc.compile("\nint x = y;", 90, &[]).unwrap_err();
        assert!(error.contains("kernels.cu(2)"), "{error}");
    }
}
