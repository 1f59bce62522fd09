//! Runs the kernels of `kernels.cu` on a CPU, for tests, by `emulate.cpp`.
#![expect(unsafe_code, reason = "kernels are functions of a C++ library")]

use super::gpu::{Launch, Task};
use crate::testing::cpp_library;
use libloading::Library;
use std::ffi::{c_int, c_uint};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

type KernelFunction = unsafe extern "C" fn(Task);

struct Emulator {
    library: Library,
    emulate: unsafe extern "C" fn(KernelFunction, c_uint, *const Task, c_uint) -> c_int,
    /// Each launch runs threads and blocks in another order.
    seed: AtomicU32,
}

pub fn kernels() -> &'static dyn Launch {
    static EMULATOR: LazyLock<Emulator> = LazyLock::new(Emulator::compile);
    &*EMULATOR
}

impl Emulator {
    fn compile() -> Self {
        let library = cpp_library::compile("model/kernels/emulate.cpp", &["-O2", "-ffp-contract=off"]);
        // SAFETY: the signatures are those of emulate.cpp; the library lives as long as the process.
        unsafe {
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
        // SAFETY: kernels have this type; the caller guarantees the memory that the task names.
        let returned = unsafe {
            let function =
                *self.library.get::<KernelFunction>(kernel.as_bytes()).expect("a kernel of that name");
            (self.emulate)(function, blocks.try_into().unwrap(), task, seed)
        };
        assert_eq!(returned, 0, "{kernel}: not all threads of a block reach a barrier");
    }
}
