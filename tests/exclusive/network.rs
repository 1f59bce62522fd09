//! Two hosts with addresses of their own and a connection that can be cut. two_hosts.sh makes them of network namespaces.

use crate::common::{Sandbox, program, run_dir, wait_until};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/exclusive/two_hosts.sh");

/// A pair of hosts, for a rank each. The script removes them when its standard input closes: on drop, or when this process ends.
pub struct Hosts {
    name: String,
    /// Stands in for ssh.
    agent: PathBuf,
    script: Child,
    stdin: Option<ChildStdin>,
}

impl Hosts {
    /// A pair whose files are in `sandbox`, or why this machine can have none.
    pub fn create(sandbox: &Sandbox) -> Result<Self, &'static str> {
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
        let agent = sandbox.path("agent");
        let text = format!(
            "#!/bin/sh\ncase $1 in 10.213.77.1) host=a ;; *) host=b ;; esac\nshift\nexec '{SCRIPT}' {name} on $host sh -c \"$*\"\n"
        );
        fs::write(&agent, text).unwrap();
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
        let hosts = Self { name, agent, stdin: script.stdin.take(), script };
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

    /// `codinet-launch` on a rank on each host.
    pub fn train(&self, sandbox: &Sandbox, run: &Path) -> Command {
        let mut command = self.command(&["on", "a"]);
        command.arg(program("codinet-launch")).args(["--hosts", "10.213.77.1:1,10.213.77.2:1"]);
        command.arg(&sandbox.config).args(["--set", &run_dir(run)]).current_dir(sandbox.folder.path());
        command.env("OMPI_MCA_plm_rsh_agent", &self.agent).env("OMPI_MCA_btl", "tcp,self");
        command.env("OMPI_MCA_btl_tcp_if_include", "veth").env("OMPI_MCA_oob_tcp_if_include", "veth");
        command
    }

    pub fn cut(&self) {
        assert!(self.command(&["cut"]).status().unwrap().success());
    }

    pub fn reconnect(&self) {
        assert!(self.command(&["reconnect"]).status().unwrap().success());
    }

    /// Waits until no rank runs on the host that the launcher is not on: mpirun cannot reach it to end them.
    pub fn wait_for_remote_ranks(&self) {
        let host = format!("{}-b", self.name);
        let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let ended = || {
            let pids = Command::new("ip").args(["netns", "pids", &host]).output().unwrap();
            let pids = String::from_utf8(pids.stdout).unwrap();
            pids.split_whitespace().all(|pid| name(pid).trim() != "codinet-train")
        };
        wait_until(90, || "a rank survives on the other host".into(), ended);
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.script.wait();
    }
}
