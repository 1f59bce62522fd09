//! Two hosts with addresses of their own, joined by a wire that is cut in mid-run: tests/exclusive/two_hosts.sh makes them of network
//! namespaces. Left out, with the reason, where that is not allowed.

use crate::common::{Bench, finish};
use crate::reserve_machine;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/exclusive/two_hosts.sh");

/// A pair of hosts; it goes when this does, or when this process ends.
struct Hosts {
    name: String,
    script: Child,
    open: Option<ChildStdin>,
}

impl Hosts {
    fn make() -> Result<Self, &'static str> {
        let root = std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap()) == 0;
        let ip = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"].iter().any(|path| Path::new(path).exists());
        match (root, ip) {
            (false, _) => return Err("network namespaces are made by root alone"),
            (_, false) => return Err("no ip: apt-get install iproute2"),
            _ => {}
        }
        let name = format!("cd{}", std::process::id());
        let mut script = Command::new(SCRIPT);
        script.arg(&name).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = script.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(script.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let hosts = Self { name, open: script.stdin.take(), script };
        match said.trim() {
            "ready" => Ok(hosts),
            _ => Err("this kernel or container allows no network namespaces"),
        }
    }

    /// The script, on this pair.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(SCRIPT);
        command.arg(&self.name).args(args);
        command
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        drop(self.open.take());
        let _ = self.script.wait();
    }
}

#[test]
fn a_wire_that_is_cut_ends_the_job_and_it_resumes() {
    let _machine = reserve_machine();
    let hosts = match Hosts::make() {
        Ok(hosts) => hosts,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let bench = Bench::new();
    // In place of ssh.
    let agent = bench.path("agent");
    let text = format!(
        "#!/bin/sh\ncase $1 in 10.213.77.1) host=a ;; *) host=b ;; esac\nshift\nexec '{SCRIPT}' {} on $host sh -c \"$*\"\n",
        hosts.name
    );
    fs::write(&agent, text).unwrap();
    fs::set_permissions(&agent, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let launcher = Path::new(env!("CARGO_BIN_EXE_codinet-train")).with_file_name("codinet-launch");
    let train = |run: &Path, epochs: u64| {
        let mut command = hosts.command(&["on", "a"]);
        command.arg(&launcher).args(["--hosts", "10.213.77.1:1,10.213.77.2:1"]).arg(&bench.config);
        command.args(["--resume", "auto", "--set", &format!("run.dir={}", run.display())]);
        command.args(["--set", &format!("stages.0.epochs={epochs}"), "--set", "stages.0.schedule=constant"]);
        command.args(["--set", "run.log_every=1", "--set", "run.checkpoint_every=3"]);
        command.args(["--set", "collective.timeout_s=4"]);
        command.env("OMPI_MCA_plm_rsh_agent", &agent).env("OMPI_MCA_btl", "tcp,self");
        command.env("OMPI_MCA_btl_tcp_if_include", "veth").env("OMPI_MCA_oob_tcp_if_include", "veth");
        command.current_dir(bench.folder.path());
        command
    };
    let run = bench.path("run");
    let (out, err) = (bench.path("out"), bench.path("err"));
    let [to_out, to_err] = [&out, &err].map(|path| fs::File::create(path).unwrap());
    let mut job = train(&run, 2000).stdout(to_out).stderr(to_err).spawn().unwrap();
    let said = || [&out, &err].map(|path| fs::read_to_string(path).unwrap()).concat();
    let start = Instant::now();
    while said().matches("] step ").count() < 8 {
        assert!(
            start.elapsed() < Duration::from_secs(120) && job.try_wait().unwrap().is_none(),
            "{}",
            said()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(hosts.command(&["cut"]).status().unwrap().success());
    // 4 s in a collective, 15 s in which mpirun cannot reach the other host's ranks, and their end.
    let start = Instant::now();
    while job.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "the job hangs: {}", said());
        std::thread::sleep(Duration::from_millis(50));
    }
    // 9 where the cut has taken the rank's code: mpirun cannot always say what it was called off with.
    assert!(matches!(job.wait().unwrap().code(), Some(8 | 9)), "{}", said());
    assert!(said().contains("error: rank 0 has waited 4 s in "), "{}", said());
    // On the far host too no rank is left: it has noticed by itself.
    let ranks = || {
        let pids = Command::new("ip").args(["netns", "pids", &format!("{}-b", hosts.name)]).output().unwrap();
        let pids = String::from_utf8(pids.stdout).unwrap();
        let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        pids.split_whitespace().filter(|pid| name(pid).trim() == "codinet-train").count()
    };
    while ranks() > 0 {
        assert!(start.elapsed() < Duration::from_secs(90), "a rank is left behind the cut");
        std::thread::sleep(Duration::from_millis(100));
    }

    assert!(hosts.command(&["reconnect"]).status().unwrap().success());
    let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    let step: u64 = latest.trim().trim_start_matches("step-").parse().unwrap();
    let epochs = step / 12 + 1;
    let output = finish(&mut train(&run, epochs));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains(&format!("(step {step})")), "{told}");

    // As a run of two ranks that no wire was cut for.
    let whole = bench.path("whole");
    assert!(finish(&mut train(&whole, epochs)).status.success());
    let weights = |run: &Path| {
        let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
        fs::read(run.join("checkpoints").join(latest.trim()).join("model.safetensors")).unwrap()
    };
    assert!(weights(&whole) == weights(&run), "the weights are the same to the bit");
}
