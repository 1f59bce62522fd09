#!/usr/bin/env python3
"""Whether codinet-train is right on this machine's GPU, and how fast, in under 10 minutes.

    cluster/gpu/check.sh                        # on one GPU
    cluster/gpu/check.sh --photos FOLDER        # with real photographs: a folder of class folders, or shards
    cluster/gpu/check.sh --device cpu --quick   # the same code, small, where there is no GPU

Needs codinet-train (in target/release, on the PATH or by --codinet-train), libtorch with its CUDA half (--libraries; by default the
one of this Python's torch, where codinet-train finds no other) and Python with torch 2.11; for JPEGs of its own making
Pillow and numpy. Prints a table, and writes it with all numbers as gpu-check.md and gpu-check.json into --output.

Right: 20 steps each with one seed, on the GPU and on the CPU, in fp32 without TF32: losses and gradient norms step by step,
within TOLERANCES; then bf16 beside fp32. An exit code of 1 says that something is off.

Fast: images/s of training in bf16, the median over stretches of steps after a warm-up; programs take turns, a process each,
and as many rounds as there is time for. codinet-train's are those of metrics.jsonl, which take in loading, the way to the GPU, the
update and the log; PyTorch's are of twin.py, which does not load. "Synthetic" feeds codinet-train from PNGs of 32x32 pixels that
are resized to the network's size, so that its loader has next to nothing to do: what it waits for the loader all the same is told.
The floors are the least time that the device needs for the step's arithmetic, and for its bytes (twin.py: `work`), at the peaks
of NVIDIA's data sheets or, for other devices, of a product of matrices and a copy.

What there is no time for is left out, the least important first, and named.
"""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from images import fed_from, shards
from report import PROGRAMS, floors, goals, median, table

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONFIGS = {"r20": "fashion_r20", "r50": "imagenet_r50", "r101": "imagenet_r101"}
# Largest relative difference of a loss and of a gradient's norm: at the first step, and at any of the 20. The rate is so low that
# rounding does not grow on the way (two numbers of threads, on a CPU: 1e-7 and 7e-4), and high enough that an update which is
# left out shows in the loss.
TOLERANCES = {"fp32": [(1e-5, 1e-3), (1e-4, 1e-2)], "bf16": [(1e-2, 1e-1), (2e-2, 2e-1)]}
STEPS = 20
# (network, images per step), the most important first; MACs tell the goals for gated ones.
SPEED = [("r50", 256), ("r101", 256), ("r50", 128), ("r50", 512), ("r50", 64), ("r101", 64)]


def stop(message):
    sys.exit(f"check.py: {message}")


def say(*words):
    print(*words, file=sys.stderr, flush=True)


class Clock:
    """How much time is left, and how much a kind of measurement took last."""

    def __init__(self, minutes):
        self.end, self.took, self.left_out = time.monotonic() + 60 * minutes, {}, []

    def left(self):
        return self.end - time.monotonic()

    def run(self, what, kind, guess, work):
        """What `work` gives; None where there is no time for it."""
        if self.left() < self.took.get(kind, guess):
            self.left_out.append(what)
            say(f"{what}: left out, {self.left():.0f} s are left")
            return None
        start = time.monotonic()
        found = work()
        self.took[kind] = 1.2 * (time.monotonic() - start)
        return found


# One run of each program.


def environment(options, tf32):
    """codinet-train's: where its libraries are, and whether NVIDIA's may use TF32."""
    env = dict(os.environ)
    if options.libraries:
        env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(options.libraries), env.get("LD_LIBRARY_PATH")]))
    if not tf32:
        env["NVIDIA_TF32_OVERRIDE"] = "0"
    return env


def train(options, net, gated, settings, lines, tf32=True, limit=300):
    """The first `lines` lines of training in metrics.jsonl of a run that is ended then; a string says what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        run, config = pathlib.Path(folder) / "run", CONFIGS[net] + ("" if gated else "_static")
        settings = [f"run.dir={run}", "run.seed=7", *settings]
        command = [options.codinet_train, f"{config}.yaml", *(part for one in settings for part in ("--set", one))]
        process = subprocess.Popen(
            command, env=environment(options, tf32), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        metrics, end, found = run / "metrics.jsonl", time.monotonic() + limit, []
        while len(found) < lines and time.monotonic() < end:
            ended = process.poll() is not None
            text = metrics.read_text() if metrics.exists() else ""
            whole = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
            found = [line for line in whole if line["kind"] == "train"]
            if ended:
                break
            time.sleep(0.05)
        process.kill()
        error = process.communicate()[1].strip()
    if len(found) >= lines:
        return found[:lines]
    return error.splitlines()[-1] if error else f"{len(found)} of {lines} lines in {limit} s"


def twin(what, plan, limit=300):
    command = [sys.executable, HERE / "twin.py", what, json.dumps(plan)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"not done in {limit:.0f} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no word"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


# Right?


def trained(options, data, net, gated, device, precision, threads):
    """(loss, gradient norm) of each step."""
    size, channels = (28, 1) if net == "r20" else (64, 3)
    folder = data / ("grey" if channels == 1 else "coloured")
    settings = [
        f"run={{device: {device}, precision: {precision}, log_every: 1, threads: {threads}}}",
        f"data={{train: {folder}, val: {folder}, image_size: {size}}}",
        "cost={budget_gmacs: null, calibrate: false}",
        "optim={batch_size: 8, lr_batch_size: 8}",
        "stages=[{name: check, epochs: 1000, lr: 0.00001}]",
    ]
    found = train(options, net, gated, settings, STEPS, tf32=False)
    if isinstance(found, str):
        return found
    return [(line["loss"], line["grad_norm"]) for line in found]


def differences(one, other):
    """The largest relative ones, of losses and of norms, at the first step and at any."""
    off = [[abs(a - b) / max(abs(b), 1e-12) for a, b in zip(*pair)] for pair in zip(one, other)]
    return [tuple(off[0]), tuple(max(column) for column in zip(*off))]


def right(options, data, clock):
    """The rows of the table of differences; the reference is the CPU's fp32."""
    rows = []
    for net, gated in [("r20", True)] if options.quick else [("r20", True), ("r50", True), ("r50", False)]:
        name = f"ResNet-{net[1:]}, {'gated' if gated else 'static'}"

        def of(device, precision, threads, name=name, net=net, gated=gated):
            what = f"{name}, {precision}, {device}"
            return clock.run(what, "right", 20, lambda: trained(options, data, net, gated, device, precision, threads))

        # Without a GPU, another number of threads is what differs.
        reference = of("cpu", "fp32", 1 if options.device == "cpu" else options.threads)
        for precision in ("fp32", "bf16"):
            found = of(options.device, precision, options.threads)
            if reference is None or found is None:
                continue
            row = {"what": name, "precision": precision}
            broken = next((one for one in (reference, found) if isinstance(one, str)), None)
            if broken:
                row.update(failed=broken, right=False)
            else:
                row["off"] = differences(found, reference)
                limits = TOLERANCES[precision]
                row["right"] = all(o <= l for off, limit in zip(row["off"], limits) for o, l in zip(off, limit))
            rows.append(row)
            say(f"{name}, {precision}:", "right" if row["right"] else "WRONG", row.get("off", broken))
    return rows


# Fast?


def ours(options, data, case, lines, log_every, limit):
    net, gated, images, source = case
    side = 28 if net == "r20" else 224
    settings = [
        f"run={{device: {options.device}, precision: bf16, log_every: {log_every}, threads: {options.threads}}}",
        f"data={{train: {data[source]}, val: {data['val']}, image_size: {side}, views: 2}}",
        "cost={budget_gmacs: null, calibrate: false}",
        f"optim={{batch_size: {images // 2}, lr_batch_size: {images // 2}}}",
        "stages=[{name: check, epochs: 1000, lr: 0.001}]",
        "run.evaluate_every=1000",
    ]
    found = train(options, net, gated, settings, lines[0] + lines[1], limit=limit)
    if isinstance(found, str):
        return {"failed": "out of memory" if "out of memory" in found.lower() else found}
    measured = found[lines[0] :]
    of = lambda key: [line[key] for line in measured]  # noqa: E731
    return {"images_per_second": of("images_per_second"), "loader_wait": statistics.median(of("loader_wait"))}


def fast(options, data, clock):
    """Images/s of each (network, gated, images, source) and program: a list of all stretches."""
    blocks, steps, warm_up = (2, 2, 1) if options.quick else (4, 10, 2)
    found = {}

    def measure(case, program, turn):
        net, gated, images, source = case
        what = f"ResNet-{net[1:]}, {'gated' if gated else 'static'}, {images} images, {source}: {program}"
        cell = found.setdefault(case, {}).setdefault(program, {"images_per_second": []})
        if "failed" in cell:
            return
        limit = max(min(clock.left(), 240), 1)
        if program == "codinet-train":
            work = lambda: ours(options, data, case, (warm_up, blocks), steps, limit)  # noqa: E731
        else:
            plan = {"net": net, "gated": gated, "images": images, "device": options.device, "threads": options.threads}
            plan.update(dtype="bf16", compiled=program == PROGRAMS[2], warm_up=warm_up * steps, blocks=blocks, steps=steps)
            work = lambda: twin("time", plan, limit)  # noqa: E731
        # Compiling takes long once; its results are kept on the disk.
        kind = (program, net, turn > 0) if program == PROGRAMS[2] else (program, net)
        guess = {PROGRAMS[2]: 90}.get(program, 30) if not options.quick else 10
        one = clock.run(f"{what}, round {turn + 1}", kind, guess, work)
        if one is None:
            return
        if isinstance(one, str):
            one = {"failed": one}
        if one.pop("out_of_memory", False):
            one["failed"] = "out of memory"
        one["images_per_second"] = cell["images_per_second"] + one.get("images_per_second", [])
        cell.update(one)
        speed = cell["images_per_second"]
        say(f"{what}:", f"{median(cell):.1f} images/s" if speed else cell["failed"])

    programs = PROGRAMS[:2] if options.quick else PROGRAMS
    cases = [("r20", 16)] if options.quick else SPEED
    main, *others = cases
    both = lambda case: [(case[0], gated, case[1], "synthetic") for gated in (False, True)]  # noqa: E731
    fed = (main[0], True, main[1], "fed")
    for turn in range(options.rounds):
        for case in both(main):
            for at in range(len(programs)):
                measure(case, programs[(at + turn) % len(programs)], turn)
        if data["fed"] and turn == 0:
            measure(fed, PROGRAMS[0], 0)
        if turn == 0:
            for size in others:
                for case in both(size):
                    for program in PROGRAMS[:2]:
                        measure(case, program, 0)
    if not options.quick:
        for case in both(others[0]):
            measure(case, PROGRAMS[2], 0)
    return found


def driver():
    path = pathlib.Path("/proc/driver/nvidia/version")
    words = path.read_text().split("\n")[0].split() if path.exists() else []
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="ResNet-20 alone, two rounds of a few steps")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--rounds", type=int, default=3, help="at most")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--codinet-train", type=pathlib.Path)
    parser.add_argument("--libraries", type=pathlib.Path, help="a folder with libtorch_cuda.so and what goes with it")
    parser.add_argument("--photos", type=pathlib.Path, help="photographs for the loader-fed run")
    parser.add_argument("--output", dest="out", type=pathlib.Path, default=pathlib.Path("."))
    options = parser.parse_args()
    clock = Clock(options.minutes)
    try:
        import torch
    except ImportError:
        stop("Python has no torch; pip install torch==2.11.0, or name a Python that has it: PYTHON=... check.sh")
    if options.device == "cuda" and not torch.cuda.is_available():
        stop("PyTorch finds no GPU here; check the driver, or try the code itself with --device cpu --quick")
    if options.device == "cuda" and options.quick:
        stop("--quick is for --device cpu; on a GPU, --minutes says how long it may take")
    if options.device == "cpu" and not options.quick:
        stop("--device cpu needs --quick: what there is to measure for a GPU would take hours")
    built = ROOT / "target/release/codinet-train"
    found = options.codinet_train or (built if built.exists() else shutil.which("codinet-train"))
    if not found:
        stop("no codinet-train in target/release or on the PATH; run make build, or set --codinet-train")
    options.codinet_train = pathlib.Path(found).resolve()
    own = pathlib.Path(torch.__file__).parent / "lib"
    if not options.libraries and options.device == "cuda" and torch.__version__.startswith("2.11."):
        options.libraries = own
    told = subprocess.run([options.codinet_train, "--version"], capture_output=True, text=True, env=environment(options, True))
    if told.returncode:
        stop(f"{found} does not start: {told.stderr.strip()}")
    options.rounds = 2 if options.quick else options.rounds
    options.out.mkdir(parents=True, exist_ok=True)

    facts = twin("facts", {"nets": ["r20"] if options.quick else ["r50", "r101"], "device": options.device})
    if isinstance(facts, str):
        stop(f"twin.py failed: {facts}")
    facts.update(driver=driver() if options.device == "cuda" else "none", cores=len(os.sched_getaffinity(0)))
    say(f"{facts['name']}, {facts['measured']}")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        shards(folder / "grey", 28, 1, 256, 1)
        shards(folder / "coloured", 32, 3, 512, 1 if options.quick else 100)
        result = {
            "date": datetime.date.today().isoformat(),
            "version": told.stdout.strip(),
            "device": facts,
            "tolerances": TOLERANCES,
            "right": right(options, folder, clock),
        }
        fed, result["fed"] = fed_from(options, folder)
        grey = options.quick
        data = {"synthetic": folder / ("grey" if grey else "coloured"), "val": folder / ("grey" if grey else "coloured"), "fed": fed}
        found = fast(options, data, clock)
    rows = []
    for (net, gated, images, source), programs in found.items():
        row = {"net": net, "gated": gated, "images": images, "source": source, "programs": programs}
        rows.append({**row, "floors": floors(facts, net, gated, images)})
    result.update(fast=rows, goals=goals(rows, facts), left_out=clock.left_out)
    text = table(result)
    (options.out / "gpu-check.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "gpu-check.md").write_text(text + "\n")
    print(text)
    if not result["right"] or not all(row["right"] for row in result["right"]):
        stop("the GPU and the CPU do not agree; see the first table")


if __name__ == "__main__":
    main()
