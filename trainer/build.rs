//! Tells the linker where the program finds libtorch: beside an installed program first, then where it was
//! built.

fn main() {
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/codinet/torch/lib");
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../configs"); // built into the program
    println!("cargo::rerun-if-env-changed=LIBTORCH");
}
