//! The pages that are generated from `configs/src`: `UPDATE=1 cargo test --release -p codinet-config --test config` writes
//! them again.

mod keys;
mod variables;
