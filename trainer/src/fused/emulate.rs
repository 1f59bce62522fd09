//! The kernels of `kernels.cu` on a CPU, for tests: `emulate.cpp` and they, compiled by the machine's C++ compiler into a
//! library that lives as long as the process.
#![expect(unsafe_code, reason = "kernels are functions of a C++ library")]

use super::gpu::{Launch, Task};
use libloading::Library;
use std::ffi::{c_int, c_uint};
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

type Kernel = unsafe extern "C" fn(Task);

struct Emulator {
    library: Library,
    emulate: unsafe extern "C" fn(Kernel, c_uint, *const Task, c_uint) -> c_int,
    /// No two launches take threads and blocks in the same order.
    seed: AtomicU32,
}

pub fn kernels() -> &'static dyn Launch {
    static EMULATOR: LazyLock<Emulator> = LazyLock::new(Emulator::compile);
    &*EMULATOR
}

impl Emulator {
    fn compile() -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/fused/emulate.cpp");
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("emulate.so");
        let mut command = Command::new("c++");
        command.args(["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-o"]);
        let done = command.args([&library, &source]).status();
        assert!(done.is_ok_and(|status| status.success()), "c++ did not compile {}", source.display());
        // SAFETY: the library has no constructors but those of C++'s own; the signatures are those of emulate.cpp; it is
        // kept for as long as the process lives.
        unsafe {
            let library = Library::new(&library).unwrap();
            let task_bytes = *library.get::<unsafe extern "C" fn() -> usize>(b"task_bytes").unwrap();
            assert_eq!(task_bytes(), size_of::<Task>());
            let emulate = *library.get(b"emulate").unwrap();
            Self { library, emulate, seed: AtomicU32::new(1) }
        }
    }
}

impl Launch for Emulator {
    unsafe fn launch(&self, kernel: &str, blocks: i64, task: &Task) {
        let seed = self.seed.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the kernel is of that type; the caller answers for what it does.
        let returned = unsafe {
            let function = *self.library.get::<Kernel>(kernel.as_bytes()).expect("a kernel of that name");
            (self.emulate)(function, blocks.try_into().unwrap(), task, seed)
        };
        assert_eq!(returned, 0, "{kernel}: a barrier that not all threads of a block come to");
    }
}
