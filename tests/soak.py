#!/usr/bin/env python3
"""Trains for hours while the job is stopped, killed and resumed at random. Checks for leaks of memory and open files, for files and
processes left behind, and for steps lost or repeated.

    tests/soak.py --hours 2                       # two ranks, Fashion-MNIST in data/fashion-mnist
    tests/soak.py --hours 0.1 --ranks 4

Each start of the job runs 5 to 120 s, one in ten 10 minutes. It ends by SIGUSR2 or SIGTERM to codinet-launch (a checkpoint, exit
code 75) or by SIGKILL of a rank, all ranks, mpirun or codinet-launch. Then no process of it may remain, the newest checkpoint
must be complete, and the next start resumes from it. Fails at the first error; otherwise prints a table.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
ENDINGS = ["USR2", "TERM", "kill a rank", "kill all ranks", "kill mpirun", "kill codinet-launch"]


def descendants_of(pid):
    """All descendants of process `pid`, from /proc."""
    result = []
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            words = status.read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if int(words[1]) == pid:
            result += [int(status.parent.name), *descendants_of(int(status.parent.name))]
    return result


def process_name(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def resource_usage(pid):
    """Resident megabytes and open files."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
        return resident, len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, IndexError):
        return None


def fail(message):
    sys.exit(f"soak.py: {message}")


def check_files(run):
    """Checks that the newest checkpoint is complete, and that the recorded steps increase. Returns the last step."""
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    if checkpoints and not (checkpoints[-1] / "COMPLETE").exists():
        fail(f"{checkpoints[-1]} is not complete")
    if len(checkpoints) > 5:
        fail(f"{len(checkpoints)} checkpoints were kept, more than 5")
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}") and '"train"' in line]
    if any(later <= earlier for earlier, later in zip(steps, steps[1:])):
        fail(f"the steps in metrics.jsonl decrease: {steps[-5:]}")
    return steps[-1] if steps else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "data/fashion-mnist")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target/release")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="soak-"))
    run = folder / "run"
    command = [options.bin / "codinet-launch", "-n", str(options.ranks), "fashion_quick.yaml", "--resume", "auto"]
    for key, value in {
        "data": f"{{train: {options.data}/train, val: {options.data}/test, train_samples: 4096}}",
        "run": f"{{dir: {run}, log_every: 5, checkpoint_every: 20, threads: 1, keep_last: 2}}",
        "stages.0.epochs": 100000,
    }.items():
        command += ["--set", f"{key}={value}"]
    starts = collections.Counter()
    usage = []
    last = 0
    end = time.monotonic() + 3600 * options.hours
    while time.monotonic() < end:
        log = open(folder / "log.txt", "w")
        job = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        stop_at = time.monotonic() + (600 if draw.random() < 0.1 else draw.uniform(5, 120))
        while time.monotonic() < min(stop_at, end) and job.poll() is None:
            time.sleep(1)
        if job.poll() is not None:
            fail(f"the job ended by itself with exit code {job.returncode}; see {folder}/log.txt")
        descendants = descendants_of(job.pid)
        ranks = [pid for pid in descendants if process_name(pid) == "codinet-train"]
        mpirun = [pid for pid in descendants if process_name(pid) in ("mpirun", "orterun", "prterun", "mpiexec")]
        if ranks:
            usage.append(max(filter(None, map(resource_usage, ranks)), default=(0, 0)))
        ending = draw.choice(ENDINGS)
        victims = {"kill a rank": ranks[:1], "kill all ranks": ranks, "kill mpirun": mpirun, "kill codinet-launch": [job.pid]}
        if ending in ("USR2", "TERM"):
            job.send_signal(getattr(signal, f"SIG{ending}"))
        for pid in victims.get(ending, []):
            os.kill(pid, signal.SIGKILL)
        try:
            code = job.wait(300)  # the machine may be busy
        except subprocess.TimeoutExpired:
            fail(f"after {ending} the job still runs; see {folder}/log.txt")
        deadline = time.monotonic() + 120
        while left := [pid for pid in descendants if process_name(pid) in ("codinet-train", "mpirun", "orterun")]:
            if time.monotonic() > deadline:
                fail(f"after {ending} {[(pid, process_name(pid)) for pid in left]} still run")
            time.sleep(0.2)
        if ending in ("USR2", "TERM") and ranks and code not in (75, 128 + getattr(signal, f"SIG{ending}")):
            fail(f"after {ending} the exit code is {code}; see {folder}/log.txt")
        if ending not in ("USR2", "TERM") and victims[ending] and code == 0:
            fail(f"after {ending} the exit code is 0")
        if (run / "metrics.jsonl").exists():
            step = check_files(run)
            if step < last - 25:
                fail(f"after {ending} steps were lost: {step}, before {last}")
            last = max(last, step)
        starts[ending] += 1
        print(f"{sum(starts.values())} starts, step {last}: {ending}, exit code {code}, {usage[-1] if usage else ''}", flush=True)
    half = len(usage) // 2
    for what, column in [("resident MB of the largest rank", 0), ("open files", 1)]:
        first, second = ([entry[column] for entry in part if entry[0] > 0] for part in (usage[:half], usage[half:]))
        if first and second:
            print(f"{what}: median {statistics.median(first):.0f} in the first half, {statistics.median(second):.0f} in the second, maximum {max(first + second):.0f}")
    left = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.name.startswith(".") or path.suffix in (".tmp", ".part"))
    print(f"{sum(starts.values())} starts, {last} steps, {dict(starts)}; half-written files: {left or 'none'}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
