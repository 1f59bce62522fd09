//! `codinet-launch` with a real mpirun.

use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// The config of the plans.
const CONFIG: &str = "\
data: {train: a, val: b, views: 2, image_size: 16}
model: {arch: resnet20}
optim: {batch_size: 8}
stages: [{epochs: 2, lr: 0.1}]
";

/// A stand-in for `codinet-train` next to a copy of the launcher: it prints its arguments, and how it was stopped. With
/// `--dry-run=json` it prints what codinet-train prints: tests/trainer/program.rs checks tests/dry_run.json against that.
///
/// Made once, before any test starts a process: one that is forked while a program is still being written keeps it busy.
static INSTALLED: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let launcher = folder.path().join("codinet-launch");
    std::fs::copy(env!("CARGO_BIN_EXE_codinet-launch"), launcher).unwrap();
    let trainer = folder.path().join("codinet-train");
    let facts = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/dry_run.json");
    let script = format!(
        "#!/bin/sh\ntrap 'echo stopping; exit 75' USR2\n\
         case \"$1\" in fail*|*/fail*) echo 'error: it fails' >&2; exit 3;; esac\n[ \"$2\" = --dry-run=json ] && exec cat {facts}\n\
         echo \"started $*\"\n[ \"$1\" = wait ] && while :; do sleep 0.1; done\n\
         [ \"$1\" = unloadable ] && exit 127\n\
         [ \"$1\" = progress ] && {{ echo \"variable ${{CODINET_PROGRESS-unset}}\"; echo '@progress 3/8 epoch 1/2 · loss 0.5'; }}\n\
         [ \"$1\" = deaf ] && {{ trap '' USR2; sleep 60; }}\n\
         if [ \"$1\" = die ]; then\n\
         [ \"$(cat \"${{3#run.dir=}}/deaths\")\" = xx ] || {{ printf x >>\"${{3#run.dir=}}/deaths\"; kill -9 $$; }}\nfi\nexit 0\n"
    );
    std::fs::write(&trainer, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&trainer, mode).unwrap();
    for name in ["my.yaml", "fail.yaml"] {
        std::fs::write(folder.path().join(name), CONFIG).unwrap();
    }
    folder
});

fn launcher() -> Command {
    Command::new(INSTALLED.path().join("codinet-launch"))
}

#[test]
fn arguments_are_forwarded_and_the_exit_code_is_returned() {
    let output = launcher().args(["-n", "3", "my.yaml", "--set", "a=b c"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.starts_with("mpirun -n 3 ") && said.contains("--set 'a=b c'\n"), "{said}");
    assert_eq!(said.matches("started my.yaml --set a=b c").count(), 3, "{said}");
    for rank in 0..3 {
        assert!(said.contains(&format!("\n[{rank}] started my.yaml")), "{said}");
    }
    let output = launcher().args(["--raw", "-n", "1", "my.yaml"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("\nstarted my.yaml"), "mpirun's own");
}

#[test]
fn last_lines_of_the_first_failed_rank_are_repeated() {
    let output =
        launcher().args(["-n", "2", "--max-restarts", "3", "fail", "--set", "run.dir=x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let (_, end) = said.split_once(" failed first; its last lines:\n").expect(&said);
    assert!(end.contains("] error: it fails\n"), "{said}");
    assert!(end.contains("exit code 3") && end.ends_with("; not restartable\n"), "{said}");
    // mpirun's own words for it only come with --raw.
    let boilerplate = "a non-zero exit code. Per user-direction, the job has been aborted.";
    assert!(!said.contains(boilerplate) && !said.contains("-----"), "{said}");
    let raw = launcher().args(["--raw", "-n", "2", "fail"]).output().unwrap();
    let said = [raw.stdout, raw.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(said.contains(boilerplate), "{said}");
}

#[test]
fn progress_is_a_bar_on_a_terminal_only() {
    let args = "-n 1 progress";
    let program = INSTALLED.path().join("codinet-launch");
    let terminal = Command::new("script")
        .args(["-qec", &format!("{} {args}", program.display()), "/dev/null"])
        .env("TERM", "xterm")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&terminal.stdout).into_owned();
    assert!(said.contains("[0] variable 1"), "{said}");
    assert!(said.contains("3/8 · epoch 1/2 · loss 0.5") && !said.contains("@progress"), "{said}");
    let file = launcher().args(args.split(' ')).output().unwrap();
    assert!(String::from_utf8_lossy(&file.stdout).contains("[0] variable unset"));
}

/// The stand-in dies twice, each time after it has said where it goes on from.
#[test]
fn crashes_are_restarted_with_back_off() {
    let folder = tempfile::tempdir().unwrap();
    let dir = format!("run.dir={}", folder.path().display());
    let start = |restarts: &str| {
        std::fs::write(folder.path().join("deaths"), "").unwrap();
        let mut launcher = launcher();
        launcher.args(["-n", "1", "--max-restarts", restarts, "--back-off", "1", "die", "--set", &dir]);
        let output = launcher.output().unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        (output.status.code(), said)
    };
    let (code, [out, err]) = start("3");
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(err.contains("restart 1 of 3 in 1 s") && err.contains("restart 2 of 3 in 2 s"), "{err}");
    assert!(out.contains(&format!("[0] started die --set {dir}\n")), "{out}");
    assert_eq!(out.matches(&format!("[0] started die --set {dir} --resume auto\n")).count(), 2, "{out}");
    let (code, [_, err]) = start("1");
    assert_eq!(code, Some(9), "a rank was lost");
    assert!(err.contains("all 1 restarts are used up"), "{err}");
}

#[test]
fn ranks_that_never_started_are_not_restarted() {
    let mut launcher = launcher();
    launcher.args([
        "-n",
        "1",
        "--hosts",
        "no-such-host.invalid",
        "--max-restarts",
        "3",
        "my.yaml",
        "--resume",
        "auto",
    ]);
    let output = launcher.output().unwrap();
    assert_eq!(output.status.code(), Some(127), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn program_that_cannot_be_loaded_is_not_restarted() {
    let mut launcher = launcher();
    launcher.args(["-n", "1", "--max-restarts", "3", "unloadable", "--set", "run.dir=x"]);
    let output = launcher.env("LD_LIBRARY_PATH", "/opt/torch/lib").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(127), "{stderr}");
    assert!(
        stderr.contains("no rank has trained; LD_LIBRARY_PATH is set") && !stderr.contains("restart 1"),
        "{stderr}"
    );
}

/// As nohup does.
#[test]
fn ignored_hangup_stays_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let start = |ignored: &str| {
        let mut shell = Command::new("sh");
        let program = INSTALLED.path().join("codinet-launch");
        let line = format!("trap '' {ignored}; exec {} -n 1 wait", program.display());
        let mut child =
            shell.args(["-c", &line]).stdout(std::fs::File::create(&log).unwrap()).spawn().unwrap();
        let since = Instant::now();
        while !std::fs::read_to_string(&log).unwrap().contains("started") {
            assert!(since.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(20));
        }
        let launcher = child.id();
        let send = |signal: &str| {
            let kill = format!("kill -{signal} {launcher}");
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        };
        send("HUP");
        std::thread::sleep(Duration::from_millis(1500));
        if ignored == "HUP" {
            assert!(child.try_wait().unwrap().is_none(), "SIGHUP has ended the job");
            send("TERM");
        }
        child.wait().unwrap().code()
    };
    assert_eq!(start("HUP"), Some(75), "the first request is SIGTERM");
    assert_eq!(start("QUIT"), Some(75), "SIGHUP is a request");
}

#[test]
fn slurm_job_without_srun_is_rejected() {
    let mpirun = Command::new("sh").args(["-c", "command -v mpirun"]).output().unwrap().stdout;
    let mut launcher = launcher();
    launcher.env("CODINET_MPIRUN", String::from_utf8(mpirun).unwrap().trim()).env("PATH", INSTALLED.path());
    let output = launcher.args(["my.yaml"]).env("SLURM_JOB_ID", "7").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("srun") && stderr.contains("not on PATH") && stderr.lines().count() == 1,
        "{stderr}"
    );
}

#[test]
fn ranks_are_killed_after_the_grace_period() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let out = std::fs::File::create(&log).unwrap();
    let mut launcher = launcher();
    let mut child = launcher.args(["-n", "1", "--grace", "1", "deaf"]).stdout(out).spawn().unwrap();
    let start = Instant::now();
    while !std::fs::read_to_string(&log).unwrap().contains("started") {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(
        Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status().unwrap().success()
    );
    let code = child.wait().unwrap().code();
    assert!(code.is_some_and(|code| code != 0 && code != 75), "{code:?}");
}

#[test]
fn launcher_under_mpirun_is_rejected() {
    let output = launcher().args(["my.yaml"]).env("OMPI_COMM_WORLD_SIZE", "2").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("under srun or mpirun start codinet-train"));
}

/// The one table is in `--help` and in the docs.
#[test]
fn exit_code_table_equals_the_docs() {
    let help = String::from_utf8(launcher().arg("--help").output().unwrap().stdout).unwrap();
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/resume.md")).unwrap();
    for line in codinet_config::exit::Exit::table().lines() {
        assert!(help.contains(line) && docs.contains(line), "{line}");
    }
}

#[test]
fn print_option_starts_no_ranks() {
    let output = launcher().args(["--print", "-n", "2", "my.yaml"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.starts_with("mpirun -n 2 ") && !said.contains("started"),
        "{said}"
    );
}

#[test]
fn signals_are_forwarded_as_sigusr2() {
    let folder = tempfile::tempdir().unwrap();
    for signal in ["INT", "TERM", "USR2"] {
        let log = folder.path().join(signal);
        let out = std::fs::File::create(&log).unwrap();
        let mut launcher = launcher();
        launcher.args(["-n", "2", "wait"]).stderr(out.try_clone().unwrap()).stdout(out);
        let mut child = launcher.spawn().unwrap();
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
        // Besides the ranks' lines there are only the command and the launcher's line, nothing of mpirun's.
        let said_at_end = said();
        let own: Vec<&str> = said_at_end.lines().filter(|line| !line.starts_with('[')).collect();
        let expected = "codinet-launch: stopping with a checkpoint; another signal ends the ranks at once";
        assert_eq!(own[1..], [expected], "{signal}: {said_at_end}");
        assert!(start.elapsed() < Duration::from_secs(60), "it does not linger");
    }
}

/// `codinet-launch plan my.yaml` with `args`: exit code, standard output, standard error.
fn plan(args: &[&str]) -> (Option<i32>, String, String) {
    let config = if args.contains(&"--wrong") { "fail.yaml" } else { "my.yaml" };
    let args = args.iter().filter(|arg| **arg != "--wrong");
    let output = launcher().arg("plan").arg(INSTALLED.path().join(config)).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn plan_prints_throughput_hours_and_cost() {
    let asked = ["--images-per-second", "100", "--gpus", "1,8", "--price", "2"];
    let (code, table, error) = plan(&asked);
    assert_eq!(code, Some(0), "{error}");
    assert!(table.contains("100.0 %") && table.contains("optim.batch_size"), "{table}");
    let (_, json, _) = plan(&[&asked[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let [one, eight] = [0, 1].map(|row| &json["plan"][row]);
    assert_eq!((&one["efficiency"], &one["batch_size"]), (&1.0.into(), &8.into()));
    // 8 samples × 2 views at 100 images/s; 2 epochs of 12 steps; 2 an hour.
    let number = |row: &serde_json::Value, key: &str| row[key].as_f64().unwrap();
    assert!((number(one, "step_seconds") - 0.16).abs() < 1e-9);
    assert!((number(one, "hours") - 24.0 * 0.16 / 3600.0).abs() < 1e-9);
    assert!((number(one, "cost") - 2.0 * number(one, "hours")).abs() < 1e-9);
    // A GPU's batch stays, so that of all grows: 1 step an epoch.
    assert_eq!(eight["batch_size"], 64);
    assert!((number(eight, "hours") - 2.0 * number(eight, "step_seconds") / 3600.0).abs() < 1e-9);
    assert!((0.9..1.0).contains(&number(eight, "efficiency")), "{eight}");
    let (_, strong, _) = plan(&[&asked[..], &["--json", "--strong"]].concat());
    assert!(strong.contains("\"batch_size\":8") && !strong.contains("\"batch_size\":64"), "{strong}");
}

#[test]
fn plan_reads_the_speed_of_a_run() {
    let run = tempfile::tempdir().unwrap();
    std::fs::write(run.path().join("summary.json"), r#"{"world_size": 2}"#).unwrap();
    let lines = [1, 60, 50].map(|speed| format!("{{\"kind\": \"train\", \"images_per_second\": {speed}}}\n"));
    std::fs::write(run.path().join("metrics.jsonl"), lines.concat()).unwrap();
    std::fs::write(run.path().join("config.yaml"), CONFIG).unwrap();
    let (code, json, error) = plan(&["--run", run.path().to_str().unwrap(), "--gpus", "1,2", "--json"]);
    assert_eq!(code, Some(0), "{error}");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    // The prediction for two GPUs is the measurement; a single GPU is a little faster than half of it.
    let speed = |row: usize| json["plan"][row]["images_per_second"].as_f64().unwrap();
    assert!((speed(1) - 50.0).abs() < 1e-6, "{}", speed(1));
    assert!((25.0..26.0).contains(&speed(0)), "{}", speed(0));
}

#[test]
fn invalid_plan_options_are_rejected_in_one_line() {
    for (args, said) in [
        (&["--gpus", "8"][..], "give --run DIR, a finished run of this config, or --images-per-second"),
        (&["--images-per-second", "9", "--gpus", "12"], "12 GPUs are not whole nodes of 8"),
        (&["--images-per-second", "9", "--gpus", "16", "--strong"], "cannot share optim.batch_size 8"),
        (&["--run", "/nowhere"], "/nowhere/summary.json"),
        (&["--images-per-second", "9", "--wrong"], "error: it fails"),
    ] {
        let (code, _, error) = plan(args);
        assert_eq!((code, error.trim_end().lines().count()), (Some(2), 1), "{args:?}: {error}");
        assert!(error.contains(said), "{args:?}: {error}");
    }
}

/// Options of the launcher as users of mpirun and torchrun write them, before or after the config.
#[test]
fn launcher_options_work_before_and_after_the_config() {
    for line in [
        "--print -n 2 my.yaml --set a=1",
        "my.yaml --set a=1 -n 2 --print",
        "my.yaml --print --set a=1 -np 2",
        "my.yaml --set a=1 --print --gpus 2",
        "--nproc-per-node 2 my.yaml --set a=1 --print",
    ] {
        let output = launcher().args(line.split(' ')).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.starts_with("mpirun -n 2 ") && said.ends_with(" my.yaml --set a=1\n"), "{line}: {said}");
    }
}

#[test]
fn help_is_help_and_wrong_arguments_start_no_ranks() {
    for line in ["help", "--help", "my.yaml --help"] {
        let output = launcher().args(line.split(' ')).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("Usage: codinet-launch"), "{line}: {said}");
        assert!(said.contains("--nproc-per-node") && !said.contains("started my.yaml"), "{line}: {said}");
    }
    let output = launcher().args(["-n", "2", "my.yaml", "--epochs", "10"]).output().unwrap();
    let [said, error] =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert_eq!((output.status.code(), said.as_str()), (Some(2), ""));
    let expected = "error: --epochs is a key of the config, not an option: --set stages.0.epochs=10\n";
    assert_eq!(error, expected);
}

#[test]
fn arguments_after_the_config_go_to_the_trainer() {
    let output = launcher().args(["--print", "-n", "2", "my.yaml", "plan"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("codinet-train my.yaml plan\n"));
}
