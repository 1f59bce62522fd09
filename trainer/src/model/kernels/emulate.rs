//! The kernels of `kernels.cu` on a CPU, for tests, by `emulate.cpp`.
#![expect(unsafe_code, reason = "kernels are functions of a C++ library")]

use super::gpu::{Launch, Task};
use crate::testing::cpp_library;
use libloading::Library;
use std::ffi::{c_int, c_uint};
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
        let library = cpp_library::library("model/kernels/emulate.cpp", &["-O2", "-ffp-contract=off"]);
        // SAFETY: the signatures are those of emulate.cpp; the library is kept for as long as the process lives.
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
        // SAFETY: the kernel is of that type; the caller answers for what it does.
        let returned = unsafe {
            let function = *self.library.get::<Kernel>(kernel.as_bytes()).expect("a kernel of that name");
            (self.emulate)(function, blocks.try_into().unwrap(), task, seed)
        };
        assert_eq!(returned, 0, "{kernel}: a barrier that not all threads of a block come to");
    }
}
