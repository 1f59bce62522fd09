#!/usr/bin/env python3
"""Trains configs with several seeds, one run after the other, and prints mean ± standard deviation as a table.

    cluster/sweep.py cifar10_table3.yaml --seeds 1 2 3 --output runs/table3 --ranks 8
    cluster/sweep.py fashion_ablation.yaml fashion_r20 --output runs/ablation -- --set data.train_samples=20000

A table's name stands for all of its rows, and FILE:ROW for one of them. The paper's figures, if a table has them, are printed
next to the measured ones.

It may be stopped and started again at any time: finished runs are kept, and a stopped run resumes from its last checkpoint.
Arguments after `--` are passed to codinet-train, and are the same for all runs in a folder. If a run fails, the others are
trained all the same, and it is named at the end. `--table` prints the table of the finished runs, and stops.
Needs Python 3 without packages, and codinet-launch in ../target/release or on the PATH.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys

# Heading, key of summary.json, scale, digits, and the key of the paper's figure.
COLUMNS = [
    ("top-1, %", "top1", 100, 2, "top1"),
    ("top-1 before stage 2, %", "top1_before", 100, 2, None),
    ("GMACs", "gmacs", 1, 4, "gmacs"),
    ("paths", "distinct_paths", 1, 1, "paths"),
    ("images/s", "images_per_second", 1, 0, None),
]


def launcher():
    built = pathlib.Path(__file__).resolve().parent.parent / "target/release/codinet-launch"
    found = str(built) if built.exists() else shutil.which("codinet-launch")
    return found or sys.exit("sweep.py: no codinet-launch in target/release or on the PATH; run make build")


def table_rows(name):
    """The rows of a table, each {name, config, paper}; none if `name` is not a table."""
    answer = subprocess.run([launcher(), "table", name, "--json"], capture_output=True, text=True)
    return json.loads(answer.stdout)["rows"] if answer.returncode == 0 else None


def expand(names):
    """The configs to train, each with the paper's figures: a table stands for its rows."""
    configs = {}
    for name in names:
        if ".yaml" not in name and ".yml" not in name:
            name += ".yaml"
        file, _, row = name.partition(":")
        rows = table_rows(file)
        if rows is None:
            configs[name] = {}
            continue
        configs.update({one["config"]: one["paper"] for one in rows if row in ("", one["name"])})
        if row and name not in configs:
            sys.exit(f"sweep.py: {file} has no row {row!r}; rows: {', '.join(one['name'] for one in rows)}")
    return configs


def run_name(config, seed):
    file, _, row = config.partition(":")
    stem = pathlib.Path(file).stem
    return f"{stem}-{row}-{seed}" if row else f"{stem}-{seed}"


def results(out, config, seeds):
    for seed in seeds:
        path = out / run_name(config, seed) / "summary.json"
        if path.exists():
            summary = json.loads(path.read_text())
            yield {**summary, "top1_before": summary["stages"][0]["top1"]}


def cell(values, scale, digits):
    values = [scale * value for value in values]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def table(out, configs, seeds):
    printed = {key for paper in configs.values() for key, figure in paper.items() if figure is not None}
    headings = ["config", "seeds"]
    for heading, *_, figure in COLUMNS:
        headings += [heading] + ["paper"] * (figure in printed)
    rows = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for config, paper in configs.items():
        runs = list(results(out, config, seeds))
        if not runs:
            continue
        cells = [config, str(len(runs))]
        for _, key, scale, digits, figure in COLUMNS:
            cells.append(cell([run[key] for run in runs], scale, digits))
            if figure in printed:
                number = paper.get(figure)
                cells.append("–" if number is None else f"{number:g}")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main():
    own = sys.argv[1:]
    more = []
    if "--" in own:
        more = own[own.index("--") + 1 :]
        own = own[: own.index("--")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="configs, tables of configs, or rows of tables (FILE:ROW)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--output", dest="out", type=pathlib.Path, required=True, help="folder for the run directories")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs, and stop")
    options = parser.parse_args(own)
    configs = expand(options.configs)
    if options.table:
        print(table(options.out, configs, options.seeds))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    settings = options.out / "settings.json"
    if settings.exists() and json.loads(settings.read_text()) != more:
        sys.exit(f"sweep.py: {options.out} holds runs with {json.loads(settings.read_text())}; choose another --output")
    settings.write_text(json.dumps(more))
    failed = []
    for seed in options.seeds:
        for config in configs:
            run = options.out / run_name(config, seed)
            if (run / "summary.json").exists():
                continue
            print(f"{config}, seed {seed}", flush=True)
            command = [launcher(), "-n", str(options.ranks), config, "--resume", "auto"]
            command += ["--set", f"run.seed={seed}", "--set", f"run.dir={run}", *more]
            code = subprocess.run(command).returncode
            if code == 75:
                sys.exit("sweep.py: stopped; start it again to resume")
            if code:
                failed.append(f"{config}, seed {seed}: exit code {code}")
    print(table(options.out, configs, options.seeds))
    if failed:
        sys.exit("sweep.py: " + "; ".join(failed))


if __name__ == "__main__":
    main()
