//! The loader's tests through its public interface, and those of `codinet-data` as its users run it.

mod bad_images;
mod cli;
mod fetch;
mod import_binary;
mod import_images;
mod left_out;
mod loader;
mod pillow;
mod shards;
mod sources;
#[cfg(feature = "store-tests")]
mod stores;
mod transforms;
mod verify;

// What the tests share.
mod data;
mod program;
mod published;
#[cfg(feature = "store-tests")]
mod server;
