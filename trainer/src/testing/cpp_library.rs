//! C++ of tests alone: compiled when a test runs, into a library that lives as long as the process.
#![expect(unsafe_code, reason = "loading a library runs its constructors")]

use libloading::Library;
use std::path::Path;
use std::process::Command;

/// `source`, a file below `src/`, by the machine's C++ compiler; what it lacks of libtorch is this program's.
pub fn library(source: &str, options: &[&str]) -> Library {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(source);
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("library.so");
    let mut command = Command::new("c++");
    command.args(["-std=c++17", "-shared", "-fPIC"]).args(options).arg("-o").args([&library, &source]);
    assert!(command.status().is_ok_and(|done| done.success()), "c++ did not compile {}", source.display());
    // SAFETY: the library has no constructors but those of C++'s own.
    unsafe { Library::new(&library) }.unwrap()
}
