#!/usr/bin/env python3
"""Trains configs with several seeds, one run after the other, and prints mean ± standard deviation as a table.

    cluster/sweep.py --seeds 1 2 3 --output runs/ablation --ranks 2 \\
        fashion_r20_static fashion_r20_vanilla fashion_r20_con fashion_r20_div fashion_r20 -- --set data.train_samples=20000

May be stopped and started again at any time: runs that are done are kept, one that was stopped goes on from its last
checkpoint. What follows `--` is handed to codinet-train, and is the same for all runs in a folder. A run that fails is
named at the end, and does not keep the others from running. `--table` prints the table of what there is, and stops.
Needs Python 3 alone, and codinet-launch in ../target/release or on the PATH.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys

COLUMNS = [
    ("top-1, %", "top1", 100, 2),
    ("top-1 before stage 2, %", "top1_before", 100, 2),
    ("GMACs", "gmacs", 1, 4),
    ("paths", "distinct_paths", 1, 1),
    ("images/s", "images_per_second", 1, 0),
]


def launcher():
    built = pathlib.Path(__file__).resolve().parent.parent / "target/release/codinet-launch"
    found = str(built) if built.exists() else shutil.which("codinet-launch")
    return found or sys.exit("sweep.py: no codinet-launch in target/release or on the PATH; run make build")


def results(out, config, seeds):
    for seed in seeds:
        path = out / f"{config}-{seed}" / "summary.json"
        if path.exists():
            summary = json.loads(path.read_text())
            yield {**summary, "top1_before": summary["stages"][0]["top1"]}


def cell(values, scale, digits):
    values = [scale * value for value in values]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def table(out, configs, seeds):
    rows = ["| config | seeds | " + " | ".join(name for name, *_ in COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    for config in configs:
        runs = list(results(out, config, seeds))
        if runs:
            cells = [cell([run[key] for run in runs], scale, digits) for _, key, scale, digits in COLUMNS]
            rows.append(f"| {config} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main():
    own, more = sys.argv[1:], []
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="names of configs, without .yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--output", dest="out", type=pathlib.Path, required=True, help="folder for the run directories")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of what is done, and stop")
    options = parser.parse_args(own)
    if options.table:
        print(table(options.out, options.configs, options.seeds))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    settings = options.out / "settings.json"
    if settings.exists() and json.loads(settings.read_text()) != more:
        sys.exit(f"sweep.py: {options.out} holds runs with {json.loads(settings.read_text())}; choose another --output")
    settings.write_text(json.dumps(more))
    failed = []
    for seed in options.seeds:
        for config in options.configs:
            run = options.out / f"{config}-{seed}"
            if (run / "summary.json").exists():
                continue
            print(f"{config}, seed {seed}", flush=True)
            command = [launcher(), "-n", str(options.ranks), f"{config}.yaml", "--resume", "auto"]
            command += ["--set", f"run.seed={seed}", "--set", f"run.dir={run}", *more]
            code = subprocess.run(command).returncode
            if code == 75:
                sys.exit("sweep.py: stopped; start again to go on from there")
            if code:
                failed.append(f"{config}, seed {seed}: exit code {code}")
    print(table(options.out, options.configs, options.seeds))
    if failed:
        sys.exit("sweep.py: " + "; ".join(failed))


if __name__ == "__main__":
    main()
