#!/usr/bin/env python3
"""Trains for hours while ranks are stopped, killed and resumed at random, and looks for what adds up: memory, open files,
files and processes left behind, steps lost or taken twice.

    tests/soak.py --hours 2                       # two ranks, Fashion-MNIST in data/fashion-mnist
    tests/soak.py --hours 0.1 --ranks 4

Each life of the job lasts 5 to 120 s, one in ten 10 minutes, and ends by SIGUSR2 or SIGTERM to codinet-launch (a checkpoint,
exit code 75) or by SIGKILL of a rank, of all ranks, of mpirun or of codinet-launch. Then nothing of it may run any more, the
newest checkpoint must be whole, and the next life goes on from it. Fails at the first thing that is wrong; else prints a table.
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
WAYS = ["USR2", "TERM", "kill a rank", "kill all ranks", "kill mpirun", "kill codinet-launch"]


def children(pid):
    """All processes below `pid`, by /proc."""
    found = []
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            words = status.read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if int(words[1]) == pid:
            found += [int(status.parent.name), *children(int(status.parent.name))]
    return found


def name(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def looked_at(pid):
    """Resident megabytes, open files."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
        return resident, len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, IndexError):
        return None


def stop(message):
    sys.exit(f"soak.py: {message}")


def check_files(run):
    """The newest checkpoint is whole; nothing half-written is older than the last life; steps in the records never go back."""
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    if checkpoints and not (checkpoints[-1] / "COMPLETE").exists():
        stop(f"{checkpoints[-1]} is not whole")
    if len(checkpoints) > 5:
        stop(f"{len(checkpoints)} checkpoints are kept")
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}") and '"train"' in line]
    if any(later <= earlier for earlier, later in zip(steps, steps[1:])):
        stop(f"metrics.jsonl goes back: {steps[-5:]}")
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
    lives, seen, last = collections.Counter(), [], 0
    end = time.monotonic() + 3600 * options.hours
    while time.monotonic() < end:
        log = open(folder / "log.txt", "w")
        job = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        until = time.monotonic() + (600 if draw.random() < 0.1 else draw.uniform(5, 120))
        while time.monotonic() < min(until, end) and job.poll() is None:
            time.sleep(1)
        if job.poll() is not None:
            stop(f"it ended by itself, with {job.returncode}: {folder}/log.txt")
        below = children(job.pid)
        ranks = [pid for pid in below if name(pid) == "codinet-train"]
        mpirun = [pid for pid in below if name(pid) in ("mpirun", "orterun", "prterun", "mpiexec")]
        if ranks:
            seen.append(max(filter(None, map(looked_at, ranks)), default=(0, 0)))
        way = draw.choice(WAYS)
        victims = {"kill a rank": ranks[:1], "kill all ranks": ranks, "kill mpirun": mpirun, "kill codinet-launch": [job.pid]}
        if way in ("USR2", "TERM"):
            job.send_signal(getattr(signal, f"SIG{way}"))
        for pid in victims.get(way, []):
            os.kill(pid, signal.SIGKILL)
        try:
            code = job.wait(300)  # the machine may be busy
        except subprocess.TimeoutExpired:
            stop(f"after {way} it still runs: {folder}/log.txt")
        gone = time.monotonic() + 120
        while left := [pid for pid in below if name(pid) in ("codinet-train", "mpirun", "orterun")]:
            if time.monotonic() > gone:
                stop(f"after {way} {[(pid, name(pid)) for pid in left]} still run")
            time.sleep(0.2)
        if way in ("USR2", "TERM") and ranks and code not in (75, 128 + getattr(signal, f"SIG{way}")):
            stop(f"after {way} its exit code is {code}: {folder}/log.txt")
        if way not in ("USR2", "TERM") and victims[way] and code == 0:
            stop(f"after {way} its exit code is 0")
        if (run / "metrics.jsonl").exists():
            step = check_files(run)
            if step < last - 25:
                stop(f"after {way} it has lost steps: {step}, {last} before")
            last = max(last, step)
        lives[way] += 1
        print(f"{sum(lives.values())} lives, step {last}: {way}, exit code {code}, {seen[-1] if seen else ''}", flush=True)
    half = len(seen) // 2
    for what, column in [("resident MB of the largest rank", 0), ("open files", 1)]:
        first, second = ([one[column] for one in part if one[0] > 0] for part in (seen[:half], seen[half:]))
        if first and second:
            print(f"{what}: median {statistics.median(first):.0f} in the first half, {statistics.median(second):.0f} in the second, most {max(first + second):.0f}")
    left = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.name.startswith(".") or path.suffix in (".tmp", ".part"))
    print(f"{sum(lives.values())} lives, {last} steps, {dict(lives)}; half-written files: {left or 'none'}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
