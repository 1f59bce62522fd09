//! What only tests compile.

pub mod cpp_library;
mod layouts;
