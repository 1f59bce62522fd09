//! Tells the linker where the programs find libtorch: next to an installed program first, then where it was built.

fn main() {
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/codinet/torch/lib");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys tells where its libtorch is");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo::rerun-if-changed=build.rs");
}
