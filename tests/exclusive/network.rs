//! Two hosts with addresses of their own, joined by a cable that is cut in mid-run. two_hosts.sh makes them of network
//! namespaces. Skipped with a message where that is not allowed.

use crate::common::{Sandbox, finish, latest_checkpoint, latest_step, program, run_dir, text, wait_until};
use crate::reserve_machine;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/exclusive/two_hosts.sh");

/// A pair of hosts. The script removes them when its standard input closes: on drop, or when this process ends.
struct Hosts {
    name: String,
    script: Child,
    stdin: Option<ChildStdin>,
}

impl Hosts {
    fn create() -> Result<Self, &'static str> {
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            return Err("only root may make network namespaces");
        }
        if !["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"].iter().any(|path| Path::new(path).exists()) {
            return Err("no ip: apt-get install iproute2");
        }
        let name = format!("cd{}", std::process::id());
        let mut script = Command::new(SCRIPT);
        script.arg(&name).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = script.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(script.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let hosts = Self { name, stdin: script.stdin.take(), script };
        match line.trim() {
            "ready" => Ok(hosts),
            _ => Err("this kernel or container allows no network namespaces"),
        }
    }

    /// The script on this pair.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(SCRIPT);
        command.arg(&self.name).args(args);
        command
    }

    /// How many ranks run on the host that the launcher is not on.
    fn remote_ranks(&self) -> usize {
        let host = format!("{}-b", self.name);
        let pids = Command::new("ip").args(["netns", "pids", &host]).output().unwrap();
        let pids = String::from_utf8(pids.stdout).unwrap();
        let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        pids.split_whitespace().filter(|pid| name(pid).trim() == "codinet-train").count()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.script.wait();
    }
}

#[test]
fn network_cut_aborts_then_resumes() {
    let _machine = reserve_machine();
    let hosts = match Hosts::create() {
        Ok(hosts) => hosts,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let sandbox = Sandbox::new();
    // Stands in for ssh.
    let agent = sandbox.path("agent");
    let script = format!(
        "#!/bin/sh\ncase $1 in 10.213.77.1) host=a ;; *) host=b ;; esac\nshift\nexec '{SCRIPT}' {} on $host sh -c \"$*\"\n",
        hosts.name
    );
    fs::write(&agent, script).unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    let train = |run: &Path, epochs: u64| {
        let mut command = hosts.command(&["on", "a"]);
        command.arg(program("codinet-launch"));
        command.args(["--hosts", "10.213.77.1:1,10.213.77.2:1"]).arg(&sandbox.config);
        command.args(["--resume", "auto", "--set", &run_dir(run)]);
        command.args(["--set", &format!("stages.0.epochs={epochs}"), "--set", "stages.0.schedule=constant"]);
        command.args(["--set", "run={log_every: 1, checkpoint_every: 3}"]);
        command.args(["--set", "collective.timeout_s=4"]);
        command.env("OMPI_MCA_plm_rsh_agent", &agent).env("OMPI_MCA_btl", "tcp,self");
        command.env("OMPI_MCA_btl_tcp_if_include", "veth").env("OMPI_MCA_oob_tcp_if_include", "veth");
        command.current_dir(sandbox.folder.path());
        command
    };
    let run = sandbox.path("run");
    let logs = [sandbox.path("stdout"), sandbox.path("stderr")];
    let [stdout, stderr] = logs.each_ref().map(|path| fs::File::create(path).unwrap());
    let mut job = train(&run, 2000).stdout(stdout).stderr(stderr).spawn().unwrap();
    let output = || logs.each_ref().map(|path| fs::read_to_string(path).unwrap()).concat();
    wait_until(120, output, || {
        assert!(job.try_wait().unwrap().is_none(), "{}", output());
        output().matches("] step ").count() >= 8
    });
    assert!(hosts.command(&["cut"]).status().unwrap().success());

    // The watchdog notices. mpirun cannot reach the other host's ranks, which must end by themselves.
    wait_until(60, || format!("the job hangs: {}", output()), || job.try_wait().unwrap().is_some());
    // 9 where the cut has lost the rank's exit code: mpirun cannot always report what it was aborted with.
    assert!(matches!(job.wait().unwrap().code(), Some(8 | 9)), "{}", output());
    assert!(output().contains("error: rank 0 has waited 4 s in "), "{}", output());
    wait_until(90, || "a rank survives on the other host".into(), || hosts.remote_ranks() == 0);

    assert!(hosts.command(&["reconnect"]).status().unwrap().success());
    let step = latest_step(&run);
    let epochs = step / 12 + 1;
    let resumed = finish(&mut train(&run, epochs));
    let stdout = text(&resumed.stdout);
    assert!(resumed.status.success(), "{stdout}{}", text(&resumed.stderr));
    assert!(stdout.contains(&format!("(step {step})")), "{stdout}");

    let whole = sandbox.path("whole");
    assert!(finish(&mut train(&whole, epochs)).status.success());
    let weights = |run: &Path| fs::read(latest_checkpoint(run).join("model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&run), "the weights differ from those of an uninterrupted run");
}
