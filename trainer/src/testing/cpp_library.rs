//! C++ that only tests need, compiled when a test runs.
#![expect(unsafe_code, reason = "loading a library runs its constructors")]

use libloading::Library;
use std::path::Path;
use std::process::Command;

/// Compiles `source`, a file below `src/`, with the machine's C++ compiler and loads it. libtorch's symbols resolve to those of
/// this program.
pub fn compile(source: &str, options: &[&str]) -> Library {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(source);
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("library.so");
    let mut command = Command::new("c++");
    command.args(["-std=c++17", "-shared", "-fPIC"]).args(options).arg("-o").args([&library, &source]);
    assert!(command.status().is_ok_and(|done| done.success()), "c++ did not compile {}", source.display());
    // SAFETY: the library's only constructors are those of C++'s own.
    unsafe { Library::new(&library) }.unwrap()
}
