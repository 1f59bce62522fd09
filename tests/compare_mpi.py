#!/usr/bin/env python3
"""Runs the same training with Open MPI and with MPICH, from two builds, and compares the losses in metrics.jsonl.

    MPICC=mpicc.mpich cargo build --release --locked -p codinet-trainer --target-dir target/mpich
    tests/compare_mpi.py target/release/codinet-train target/mpich/release/codinet-train data/fashion-mnist

On two ranks the losses must be identical, on four within 1e-5 (MPIs sum in different orders). Needs both mpiruns, as
mpirun.openmpi and mpirun.mpich (Debian: openmpi-bin, mpich), and Python 3 without packages.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

LOSSES = ["loss", "ce", "con", "div", "cost", "grad_norm"]
STEPS = 20


def train(mpirun, program, ranks, data, run):
    command = [mpirun, "-n", str(ranks)]
    if mpirun.endswith("openmpi"):
        command += ["--oversubscribe", "--bind-to", "none"] + (["--allow-run-as-root"] if os.geteuid() == 0 else [])
    command += [str(program), "fashion_quick.yaml"]
    settings = {
        "run.dir": run,
        "run.device": "cpu",
        "run.threads": 1,
        "run.log_every": 1,
        "data.train": f"{data}/train",
        "data.val": f"{data}/test/test-000001.tar",
        "data.train_samples": 32 * STEPS,
        "stages.0.epochs": 1,
        "stages.1.epochs": 1,
    }
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in LOSSES} for line in lines if line["kind"] == "train"]


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    open_mpi, mpich, data = (pathlib.Path(argument).resolve() for argument in sys.argv[1:])
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for ranks, tolerance in [(2, 0.0), (4, 1e-5)]:
            runs = [
                train(mpirun, program, ranks, data, pathlib.Path(folder) / f"{mpirun}-{ranks}")
                for mpirun, program in [("mpirun.openmpi", open_mpi), ("mpirun.mpich", mpich)]
            ]
            assert len(runs[0]) == len(runs[1]) == 2 * STEPS, [len(run) for run in runs]
            first = runs[0][:STEPS], runs[1][:STEPS]
            gaps = {key: max(abs(a[key] - b[key]) for a, b in zip(*runs)) for key in LOSSES}
            early = {key: max(abs(a[key] - b[key]) for a, b in zip(*first)) for key in LOSSES}
            worst = max(value for key, value in gaps.items() if key != "grad_norm" or not tolerance)
            failed |= worst > tolerance
            print(f"{ranks} ranks, {2 * STEPS} steps: largest difference {worst:.3g}, allowed {tolerance:g}")
            print(f"  by field {gaps}\n  of stage 1 {early}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
