//! `codinet-launch` with a real mpirun.

use std::process::Command;
use std::time::{Duration, Instant};

/// A stand-in for `codinet-train` beside a copy of the launcher: it tells its ranks and arguments, and how it was
/// stopped.
fn install(folder: &std::path::Path) -> Command {
    let launcher = folder.join("codinet-launch");
    std::fs::copy(env!("CARGO_BIN_EXE_codinet-launch"), &launcher).unwrap();
    let trainer = folder.join("codinet-train");
    let script = "#!/bin/sh\ntrap 'echo stopping; exit 75' USR2\necho \"started $*\"\n\
                  [ \"$1\" = fail ] && exit 3\n[ \"$1\" = wait ] && while :; do sleep 0.1; done\nexit 0\n";
    std::fs::write(&trainer, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&trainer, mode).unwrap();
    Command::new(launcher)
}

#[test]
fn ranks_get_their_arguments_and_their_exit_code_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let output = install(folder.path()).args(["-n", "3", "my.yaml", "--set", "a=b c"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.starts_with("mpirun -n 3 ") && said.contains("--set 'a=b c'\n"), "{said}");
    assert_eq!(said.matches("started my.yaml --set a=b c").count(), 3, "{said}");
    let output = install(folder.path()).args(["-n", "2", "fail"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn print_starts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = install(folder.path()).args(["--print", "-n", "2", "my.yaml"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.starts_with("mpirun -n 2 ") && !said.contains("started"),
        "{said}"
    );
}

#[test]
fn a_signal_becomes_the_one_that_ranks_checkpoint_on() {
    let folder = tempfile::tempdir().unwrap();
    for signal in ["INT", "TERM", "USR2"] {
        let log = folder.path().join(signal);
        let out = std::fs::File::create(&log).unwrap();
        let mut child = install(folder.path()).args(["-n", "2", "wait"]).stdout(out).spawn().unwrap();
        let said = || std::fs::read_to_string(&log).unwrap();
        let start = Instant::now();
        while said().matches("started").count() < 2 {
            assert!(start.elapsed() < Duration::from_secs(60), "{}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(75), "{signal}: {}", said());
        assert!(said().contains("stopping"), "{signal}: {}", said());
        assert!(start.elapsed() < Duration::from_secs(60), "it does not linger");
    }
}
