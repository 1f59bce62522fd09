//! Compiled only for tests.

pub mod cpp_library;
mod layouts;
