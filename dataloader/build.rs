//! Compiles `src/jpeg/libjpeg.c` against the libjpeg-turbo that `turbojpeg-sys` built.

fn main() {
    let file = "src/jpeg/libjpeg.c";
    println!("cargo:rerun-if-changed={file}");
    let include = std::env::var("DEP_TURBOJPEG_INCLUDE").expect("turbojpeg-sys says where its headers are");
    cc::Build::new().file(file).includes(include.split(',')).warnings(true).compile("codinet_jpeg");
}
