//! The scripts of cluster/slurm on a SLURM of two nodes, which tests/exclusive/slurm.sh makes on this machine. Left out, with
//! the reason, where SLURM's programs are not installed.

use crate::common::{mpirun, succeed};
use crate::reserve_machine;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

const FASHION_MNIST: &str = "/usr/share/datasets/fashion-mnist";

/// What this needs and this machine lacks.
fn lacking() -> Option<String> {
    let found = |program: &&str| {
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        path.split(':').any(|dir| Path::new(dir).join(program).exists())
    };
    let programs = ["munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel"];
    let missing: Vec<&str> = programs.into_iter().filter(|program| !found(program)).collect();
    match missing.is_empty() {
        false => Some(format!("{} not installed: apt-get install slurm-wlm munge", missing.join(", "))),
        true if !Path::new(FASHION_MNIST).exists() => Some(format!("no {FASHION_MNIST}")),
        true => None,
    }
}

/// A SLURM of two nodes; it goes, with all its jobs, when this does or when this process ends.
struct Cluster {
    folder: tempfile::TempDir,
    script: Child,
    open: Option<ChildStdin>,
}

impl Cluster {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/exclusive/slurm.sh");
        let mut script = Command::new(script)
            .args([&folder.path().join("slurm"), Path::new("1")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(script.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said.trim(), "ready", "the cluster does not start: its logs are above");
        Self { folder, open: script.stdin.take(), script }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["60", program]).args(args).current_dir(self.folder.path());
        command.env("SLURM_CONF", self.path("slurm/slurm.conf"));
        // A rank once died at its start, of a call through a null pointer in the thread that calls MPI; 100 starts of a small MPI
        // program did not repeat it. What PMIx shares between processes of a node is suspected, for these nodes are one machine;
        // by this they do without.
        command.env("PMIX_MCA_gds", "hash");
        command
    }

    fn says(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program, args).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "{program} {args:?}: {}", said(&output.stderr));
        said(&output.stdout)
    }

    /// The script as shipped, its lines filled in, without the line that asks for GPUs; the job's number. `more` has further
    /// flags of sbatch's.
    fn submit(&self, script: &str, config: &Path, more: &[&str]) -> String {
        let text = fs::read_to_string(
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cluster/slurm")).join(script),
        );
        let text = text.unwrap();
        let programs = Path::new(env!("CARGO_BIN_EXE_codinet-train")).parent().unwrap();
        let filled: Vec<String> = text
            .lines()
            .filter(|line| !line.contains("--gpus-per-node"))
            .map(|line| match line.split_once('=') {
                Some(("CONFIG", _)) => format!("CONFIG={}", config.display()),
                Some(("PROGRAMS", _)) => format!("PROGRAMS={}", programs.display()),
                Some(("SET", _)) => "SET=fashion-mnist".to_owned(),
                Some(("SRC", _)) => format!("SRC={FASHION_MNIST}"),
                Some(("OUTPUT", _)) => "OUTPUT=data".to_owned(),
                Some(("RUN", "runs/codinet-1234")) => "RUN=whole".to_owned(),
                Some(("BUDGETS", _)) => "BUDGETS=(0.025 0.02)".to_owned(),
                _ => line.to_owned(),
            })
            .collect();
        fs::write(self.path(script), filled.join("\n") + "\n").unwrap();
        let small = ["--parsable", "--ntasks-per-node=1", "--cpus-per-task=1"];
        self.says("sbatch", &[&small[..], more, &[script]].concat())
    }

    /// The job's state, as `scontrol` has it.
    fn state(&self, job: &str) -> String {
        let shown = self.says("scontrol", &["show", "job", job]);
        let state = shown.split_whitespace().find_map(|word| word.strip_prefix("JobState="));
        state.unwrap_or_default().to_owned()
    }

    /// What the job's script and its ranks have said.
    fn log(&self, job: &str) -> String {
        let entries = fs::read_dir(self.folder.path()).unwrap().flatten().map(|entry| entry.path());
        let log = entries.into_iter().find(|path| path.to_string_lossy().ends_with(&format!("-{job}.log")));
        log.map(|log| fs::read_to_string(log).unwrap()).unwrap_or_default()
    }

    fn wait(&self, job: &str, what: &str, mut done: impl FnMut() -> bool) -> Duration {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(180), "job {job}: no {what}\n{}", self.log(job));
            std::thread::sleep(Duration::from_millis(100));
        }
        start.elapsed()
    }

    /// Waits until the job has logged so many steps.
    fn wait_for_steps(&self, job: &str, steps: usize) {
        let metrics = self.path(&format!("runs/codinet-{job}/metrics.jsonl"));
        let lines = || fs::read_to_string(&metrics).map_or(0, |text| text.matches("\"train\"").count());
        self.wait(job, "steps", || lines() >= steps);
    }

    /// Processes of a job: those that have its number, and this cluster's configuration, in their environment.
    fn processes(&self, job: &str) -> Vec<(u32, String)> {
        let wanted = [
            format!("SLURM_JOB_ID={job}"),
            format!("SLURM_CONF={}", self.path("slurm/slurm.conf").display()),
        ];
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter_map(|pid| {
            let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let has =
                |variable: &String| environ.split(|byte| *byte == 0).any(|set| set == variable.as_bytes());
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            wanted.iter().all(has).then(|| (pid, name.trim().to_owned()))
        })
        .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.open.take()); // the script ends the cluster when this closes
        let _ = self.script.wait();
    }
}

/// The last checkpoint's weights and momenta.
fn weights(run: &Path) -> [Vec<u8>; 2] {
    let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    let last = run.join("checkpoints").join(latest.trim());
    ["model.safetensors", "optimizer.safetensors"].map(|file| fs::read(last.join(file)).unwrap())
}

fn summary(run: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(run.join("summary.json")).unwrap()).unwrap()
}

#[test]
fn two_nodes_checkpoint_requeue_and_finish() {
    let _machine = reserve_machine();
    if let Some(reason) = lacking() {
        println!("skipped: {reason}");
        return;
    }
    let cluster = Cluster::start();
    let config = cluster.path("fashion.yaml");
    let import = cluster.submit("import.sbatch", &config, &[]);
    cluster.wait(&import, "end", || cluster.state(&import) == "COMPLETED");
    let text = format!(
        "extends: fashion_quick.yaml\ndata: {{train: '{data}/train', val: '{data}/test/test-000001.tar', train_samples: 320}}\n\
         run: {{log_every: 1, threads: 1, checkpoint_every: 4}}\nstages:\n  - {{name: relaxed, epochs: 1, lr: 0.05}}\n  \
         - {{name: hard, epochs: 1, lr: 0.02, routers: freeze}}\n",
        data = cluster.path("data").display()
    );
    fs::write(&config, &text).unwrap();

    // A run that nobody stops, by mpirun.
    let whole = cluster.path("whole");
    let mut mpirun = mpirun(2);
    mpirun.arg(env!("CARGO_BIN_EXE_codinet-train")).arg(&config);
    succeed(mpirun.args(["--set", &format!("run.dir={}", whole.display())]));

    // The signal that SLURM sends before the limit: a checkpoint, the queue, and the rest of the run.
    let job = cluster.submit("train.sbatch", &config, &[]);
    cluster.wait_for_steps(&job, 3);
    cluster.says("scancel", &["--signal=USR2", &job]);
    cluster.wait(&job, "end", || cluster.state(&job) == "COMPLETED");
    let log = cluster.log(&job);
    for said in ["requeued 0 times", "stopped on request after step ", "requeued 1 times", "resuming from "] {
        assert!(log.contains(said), "{said}: {log}");
    }
    let run = cluster.path(&format!("runs/codinet-{job}"));
    assert!(
        fs::read_to_string(run.join("log.txt"))
            .unwrap()
            .contains(&format!("SLURM job {job}, requeued 1 times"))
    );
    assert!(weights(&whole) == weights(&run), "the weights and momenta are the same to the bit");

    // The same by mpirun, for a SLURM that has no PMIx.
    let job = cluster.submit("train-mpirun.sbatch", &config, &[]);
    cluster.wait_for_steps(&job, 3);
    cluster.says("scancel", &["--batch", "--signal=USR2", &job]);
    cluster.wait(&job, "end", || cluster.state(&job) == "COMPLETED");
    assert!(cluster.log(&job).contains("stopped on request after step "), "{}", cluster.log(&job));
    assert!(weights(&whole) == weights(&cluster.path(&format!("runs/codinet-{job}"))));

    // Two budgets, and an evaluation of the first run.
    let sweep = cluster.submit("sweep.sbatch", &config, &["--array=0-1"]);
    let evaluation = cluster.submit("eval.sbatch", &config, &[]);
    cluster.wait(&evaluation, "end", || cluster.state(&evaluation) == "COMPLETED");
    let whole_summary = summary(&whole);
    let top1 = format!("top-1 {:.2} %", 100.0 * whole_summary["top1"].as_f64().unwrap());
    assert!(cluster.log(&evaluation).contains(&top1), "{top1}: {}", cluster.log(&evaluation));
    let of = |budget: &str| cluster.path(&format!("runs/codinet-sweep-{sweep}/budget-{budget}"));
    let budgets = ["0.025", "0.02"].map(of);
    cluster.wait(&sweep, "end", || budgets.iter().all(|run| run.join("summary.json").exists()));
    for (run, budget) in budgets.iter().zip([0.025, 0.02]) {
        assert_eq!(summary(run)["stages"][0]["budget_gmacs"], budget);
    }

    // A job that is long enough to be hurt. Where a rank is killed, it starts again; the fourth time it does not.
    fs::write(&config, text.replace("epochs: 1, lr: 0.05", "epochs: 500, lr: 0.05")).unwrap();
    let job = cluster.submit("train.sbatch", &config, &[]);
    cluster.wait_for_steps(&job, 3);
    let kill_one = |job: &str| {
        let processes = cluster.processes(job);
        let ranks: Vec<u32> =
            processes.iter().filter(|(_, name)| name == "codinet-train").map(|(pid, _)| *pid).collect();
        assert_eq!(ranks.len(), 2, "{processes:?}");
        let killed = Command::new("sh").args(["-c", &format!("kill -9 {}", ranks[1])]).status();
        assert!(killed.unwrap().success());
    };
    kill_one(&job);
    cluster.wait(&job, "second start", || cluster.log(&job).contains("requeued 1 times"));
    let failures = cluster.path(&format!("runs/codinet-{job}/failures-{job}"));
    assert!(fs::read_to_string(&failures).unwrap().contains("exit code 137"));
    cluster.says("scancel", &[&job]);

    let job = cluster.submit("train.sbatch", &config, &[]);
    cluster.wait_for_steps(&job, 3);
    fs::write(cluster.path(&format!("runs/codinet-{job}/failures-{job}")), "one\ntwo\nthree\n").unwrap();
    kill_one(&job);
    let took = cluster.wait(&job, "end", || cluster.state(&job) == "FAILED");
    assert!(took < Duration::from_secs(10), "{took:?}");

    // scancel leaves nothing behind, and does not requeue.
    let job = cluster.submit("train.sbatch", &config, &[]);
    cluster.wait_for_steps(&job, 3);
    assert!(!cluster.processes(&job).is_empty());
    cluster.says("scancel", &[&job]);
    cluster.wait(&job, "end", || cluster.state(&job) == "CANCELLED" && cluster.processes(&job).is_empty());
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((cluster.state(&job), cluster.processes(&job)), ("CANCELLED".into(), Vec::new()));
}
