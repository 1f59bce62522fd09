//! The documentation against the code: files, commands and settings that pages name exist, and generated pages are up to
//! date. `UPDATE=1 cargo test --release --workspace --test docs` writes those again.

mod architecture;
mod keys;
mod pages;
mod variables;

#[path = "../common/mod.rs"]
mod common;
