//! The trainer's tests: the network and its losses by numbers, and `codinet-train` as its users run it.

mod bad_input;
mod copies;
mod golden;
mod launched;
mod paper;
mod program;
mod ranks;
mod recipes;
mod resume;

#[path = "../common/mod.rs"]
mod common;
