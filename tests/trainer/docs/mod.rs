//! The pages against the code: what they name exists, and those that are generated are up to date.

mod architecture;
mod pages;
