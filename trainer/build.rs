//! Builds the C and C++ functions that tch and rsmpi lack, and sets where a program looks for libtorch: next to the installed
//! program first, then where it was built.

use std::path::Path;

fn main() {
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/codinet/torch/lib");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys publishes the folder of its libtorch");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    let include = Path::new(&lib).with_file_name("include");
    println!("cargo::rustc-env=LIBTORCH_INCLUDE={}", include.display()); // for tests
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false) // of libtorch's headers
        .define("NDEBUG", None) // as libtorch was built, which decides what its classes hold
        .includes([include.clone(), include.join("torch/csrc/api/include")])
        .file("native/shim.cpp")
        .file("native/profile.cpp")
        .compile("codinet_shim");
    #[cfg(feature = "mpi")]
    {
        let mpi = build_probe_mpi::probe().expect("mpi-sys found an MPI");
        cc::Build::new().includes(&mpi.include_paths).file("native/in_place.c").compile("codinet_in_place");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=native");
    println!("cargo::rerun-if-env-changed=LIBTORCH");
}
