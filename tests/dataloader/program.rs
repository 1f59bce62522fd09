//! Runs `codinet-data`, for the tests that use it as its users do.

use std::process::{Command, Output};

pub fn codinet_data(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_codinet-data")).args(arguments).output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one line on stderr of a run that ended with exit code 3.
pub fn data_error(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.trim_end().lines().count() == 1, "{stderr}");
    stderr
}
