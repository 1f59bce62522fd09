//! The tests of codinet-infer, codinet-export and codinet-analyze.

#[path = "../common/mod.rs"]
mod common;

mod analyze;
mod export;
mod infer;
mod python;
