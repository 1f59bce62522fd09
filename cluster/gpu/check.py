#!/usr/bin/env python3
"""Checks codinet-train on this machine's GPU in under 10 minutes: its numerics against the CPU, its speed against PyTorch.

    cluster/gpu/check.sh                        # on one GPU
    cluster/gpu/check.sh --photos FOLDER        # with real photographs: a folder of class folders, or shards
    cluster/gpu/check.sh --device cpu --quick   # the same code, small, without a GPU

Needs codinet-train (in target/release, on the PATH or by --codinet-train), libtorch's CUDA libraries (--libraries; by default
those of this Python's torch) and Python with torch 2.11. To make its own JPEGs it needs Pillow and numpy. Prints a table, and
writes it with all numbers as gpu-check.md and gpu-check.json into --output.

Numerics: 20 steps with one seed, on the GPU in fp32 without TF32 and in bf16, with own kernels and over NCCL, against the CPU in fp32.
How far a GPU may be off depends on the network: rounding grows through some. So the CPU computes each case with two numbers of
threads, and the GPU may be off by SPREADS times their difference, plus TOLERANCES. `model.zero_init_last_norm` makes ResNet-50
well-conditioned, so that there small differences count. Exit code 1 means that a comparison failed.

Speed: images/s of training in bf16, the median over blocks of steps after a warm-up. Programs alternate, one process each, for as
many rounds as time allows. codinet-train's figures are those of metrics.jsonl, which include loading, the copy to the GPU, the
update and the log. PyTorch's are from twin.py, which does not load. "Synthetic" feeds codinet-train from PNGs of 32x32 pixels
resized to the network's size, so that its loader has little to do; the remaining wait for the loader is reported.
The floors are the least time that the device needs for the step's arithmetic, and for its bytes (twin.py: `count_work`). They
use the peaks of NVIDIA's data sheets or, for other devices, those measured for a matrix product and a copy.

Inference: milliseconds per batch of codinet-infer in bf16, the static backbone against 60 % of the blocks, drawn at random for each image:
blocks computed for all images (--gather 0), and for those that run them (--gather 100).

Each measurement is kept in --output. A second call with the same program, device and folder measures what the first one skipped for
lack of time; --fresh starts again. The most important measurements come first: numerics, inference (a minute), this program, with own
kernels, PyTorch eager, other batch sizes, torch.compile.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from images import loader_source, shards
from report import COMPILED, EAGER, KERNELS, OURS, PROGRAMS, floors, goals, median, table, verdict

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONFIGS = {"r20": "fashion_r20", "r50": "imagenet_r50", "r101": "imagenet_r101"}
# The relative differences of a loss and of a gradient norm that are always allowed: at the first step, and at any of the 20. The
# learning rate is low enough that rounding hardly grows, and high enough that a missing update changes the loss.
TOLERANCES = {"fp32": [(1e-5, 1e-3), (1e-4, 1e-2)], "bf16": [(1e-2, 1e-1), (2e-2, 2e-1)]}
# And so many times the difference between two numbers of CPU threads.
SPREADS = 5
STEPS = 20
# (network, images per step), the most important first.
SPEED = [("r50", 256), ("r101", 256), ("r50", 128), ("r50", 512), ("r50", 64), ("r101", 64)]


def fail(message):
    sys.exit(f"check.py: {message}")


def log(*words):
    print(*words, file=sys.stderr, flush=True)


class Clock:
    """The remaining time, the duration of the last measurement of each kind, and the results so far, also of earlier calls."""

    def __init__(self, minutes):
        self.end = time.monotonic() + 60 * minutes
        self.durations = {}
        self.left_out = []
        self.results = {}
        self.file = None

    def resume(self, file, identity, fresh):
        """Takes up the results in `file`, if they are of the same program and device."""
        self.file = file
        self.identity = identity
        if file.exists() and not fresh:
            earlier = json.loads(file.read_text())
            if earlier["identity"] == identity:
                self.results = earlier["results"]
                log(f"{len(self.results)} results of an earlier call are in {file}")

    def remaining(self):
        return self.end - time.monotonic()

    def run(self, what, kind, guess, measure):
        """Returns the result of `measure`, now or earlier, or None if the remaining time is too short for it."""
        if what in self.results:
            return self.results[what]
        if self.remaining() < self.durations.get(kind, guess):
            self.left_out.append(what)
            log(f"{what}: skipped, {self.remaining():.0f} s remain")
            return None
        start = time.monotonic()
        result = measure()
        self.durations[kind] = 1.2 * (time.monotonic() - start)
        if isinstance(result, str) or isinstance(result, dict) and "failed" in result:
            return result  # the next call tries again
        self.results[what] = result
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({"identity": self.identity, "results": self.results}))
        new.replace(self.file)
        return result


# Run one program.


def environment(options, tf32):
    """The environment of codinet-train: where its libraries are, and whether NVIDIA's libraries may use TF32."""
    env = dict(os.environ)
    if options.libraries:
        env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(options.libraries), env.get("LD_LIBRARY_PATH")]))
    if not tf32:
        env["NVIDIA_TF32_OVERRIDE"] = "0"
    return env


def train(options, net, gated, settings, lines, tf32=True, limit=300):
    """Runs codinet-train until metrics.jsonl has `lines` training lines, and kills it. Returns them, or a string with the error."""
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        settings = [f"run.dir={run}", "run.seed=7", *settings, *([] if gated else ["model.gates=none"])]
        command = [options.codinet_train, f"{CONFIGS[net]}.yaml", *(part for setting in settings for part in ("--set", setting))]
        process = subprocess.Popen(
            command, env=environment(options, tf32), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        metrics = run / "metrics.jsonl"
        end = time.monotonic() + limit
        train_lines = []
        while len(train_lines) < lines and time.monotonic() < end:
            exited = process.poll() is not None
            text = metrics.read_text() if metrics.exists() else ""
            complete = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
            train_lines = [line for line in complete if line["kind"] == "train"]
            if exited:
                break
            time.sleep(0.05)
        else:
            exited = False
        process.kill()
        error = process.communicate()[1].strip()
    note = next((line for line in error.splitlines() if line.startswith("note: run.cuda_kernels")), None)
    if note:
        return note
    if len(train_lines) >= lines:
        return train_lines[:lines]
    return error_line(error) if exited else f"{len(train_lines)} of {lines} log lines in {limit:.0f} s"


def error_line(text):
    """The line that says what went wrong: a program's error line or Python's exception, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ") or line.split(":")[0].endswith(("Error", "Exception"))]
    return (errors or lines or ["no error output"])[-1][:200]


def run_twin(what, plan, limit=300):
    """Runs twin.py in its own process. Returns its JSON, or a string with the error."""
    command = [sys.executable, HERE / "twin.py", what, json.dumps(plan)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"timed out after {limit:.0f} s"
    if done.returncode:
        return error_line(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


# Numerics.


def train_steps(options, data, net, gated, device, precision, threads, limit, extra=()):
    """(loss, gradient norm) of each step."""
    size = 28 if net == "r20" else 64
    folder = data / ("grey" if net == "r20" else "coloured")
    settings = [
        f"run={{device: {device}, precision: {precision}, log_every: 1, threads: {threads}}}",
        f"data={{train: {folder}, val: {folder}, image_size: {size}}}",
        "cost={budget_gmacs: null, calibrate: false}",
        "optim={batch_size: 8, lr_batch_size: 8}",
        "stages=[{name: check, epochs: 1000, lr: 0.00001}]",
        *extra,
    ]
    lines = train(options, net, gated, settings, STEPS, tf32=False, limit=limit)
    if isinstance(lines, str):
        return lines
    return [(line["loss"], line["grad_norm"]) for line in lines]


def relative_differences(steps, reference):
    """The relative differences of (loss, norm) at the first step, and the largest at any step."""
    off = [[abs(a - b) / max(abs(b), 1e-12) for a, b in zip(*pair)] for pair in zip(steps, reference)]
    return [tuple(off[0]), tuple(max(column) for column in zip(*off))]


def compare(steps, references, precision):
    """A row of the table: the differences from the first reference, and whether they are allowed."""
    results = [steps, *references]
    error = next((result for result in results if isinstance(result, str)), None)
    if error:
        return {"failed": error, "right": False}
    off = relative_differences(steps, references[0])
    spread = relative_differences(references[1], references[0])
    allowed = [[SPREADS * s + t for s, t in zip(*pair)] for pair in zip(spread, TOLERANCES[precision])]
    right = all(o <= a for pair in zip(off, allowed) for o, a in zip(*pair))
    return {"off": off, "allowed": allowed, "right": right}


def check_numerics(options, data, clock):
    """The rows of the table of differences; the reference is fp32 on the CPU."""
    calm = ("model.zero_init_last_norm=true",)
    cases = [("r20", True, ()), ("r50", True, calm), ("r50", False, calm), ("r50", True, ())]
    variants = [("fp32", ()), ("bf16", ()), ("fp32", ("run.cuda_kernels=true",)), ("fp32", ("collective.backend=nccl",))]
    # Without a GPU, the runs differ only in their number of threads.
    threads = [1, 2] if options.device == "cpu" else [options.threads, max(options.threads // 2, 1)]
    rows = []
    for net, gated, extra in cases[:1] if options.quick else cases:
        name = f"ResNet-{net[1:]}, {'gated' if gated else 'static'}{', last norm 0' if extra else ''}"

        def run(device, precision, threads, settings, name=name, net=net, gated=gated, extra=extra):
            what = f"{name}, {precision}, {' '.join([device, *settings])}, {threads} threads"
            limit = max(min(clock.remaining(), 300), 1)
            measure = lambda: train_steps(options, data, net, gated, device, precision, threads, limit, [*extra, *settings])  # noqa: E731
            return clock.run(what, f"numerics {net} {device}", 20, measure)

        references = [run("cpu", "fp32", count, ()) for count in threads]
        if None in references:
            continue
        for precision, settings in variants[:2] if options.device == "cpu" else variants:
            steps = run(options.device, precision, options.threads, settings)
            if steps is None:
                continue
            row = {"what": ", ".join([name, *settings]), "precision": precision, **compare(steps, references, precision)}
            rows.append(row)
            log(f"{row['what']}, {precision}:", verdict(row), row.get("off", row.get("failed")))
    return rows


# Speed.


def time_codinet_train(options, data, case, lines, log_every, limit, kernels):
    """Images/s and loader wait of codinet-train; `lines` counts log lines of the warm-up and of the measurement."""
    net, gated, images, source = case
    side = 28 if net == "r20" else 224
    settings = [
        f"run={{device: {options.device}, precision: bf16, log_every: {log_every}, threads: {options.threads}}}",
        f"data={{train: {data[source]}, val: {data['val']}, image_size: {side}, views: 2}}",
        "cost={budget_gmacs: null, calibrate: false}",
        f"optim={{batch_size: {images // 2}, lr_batch_size: {images // 2}}}",
        "stages=[{name: check, epochs: 1000, lr: 0.001}]",
        "run.evaluate_every=1000",
        f"run.cuda_kernels={json.dumps(kernels)}",
    ]
    warm_up, count = lines
    result = train(options, net, gated, settings, warm_up + count, limit=limit)
    if isinstance(result, str):
        return {"failed": "out of memory" if "out of memory" in result.lower() else result}
    measured = result[warm_up:]
    return {
        "images_per_second": [line["images_per_second"] for line in measured],
        "loader_wait": statistics.median(line["loader_wait"] for line in measured),
    }


def check_speed(options, data, clock):
    """Images/s of each (network, gated, images, source) and program: a list over all blocks of steps."""
    blocks, steps, warm_up = (2, 2, 1) if options.quick else (4, 10, 2)
    cells = {}

    def measure(case, program, turn):
        net, gated, images, source = case
        what = f"ResNet-{net[1:]}, {'gated' if gated else 'static'}, {images} images, {source}: {program}"
        cell = cells.setdefault(case, {}).setdefault(program, {"images_per_second": []})
        if "failed" in cell:
            return
        limit = max(min(clock.remaining(), 240), 1)
        if program in (OURS, KERNELS):
            kernels = program == KERNELS
            run = lambda: time_codinet_train(options, data, case, (warm_up, blocks), steps, limit, kernels)  # noqa: E731
        else:
            plan = {"net": net, "gated": gated, "images": images, "device": options.device, "threads": options.threads}
            plan.update(dtype="bf16", compiled=program == COMPILED, warm_up=warm_up * steps, blocks=blocks, steps=steps)
            run = lambda: run_twin("time", plan, limit)  # noqa: E731
        # Only the first compilation takes long; torch caches its results on disk.
        kind = (program, net, turn > 0) if program == COMPILED else (program, net)
        guess = {COMPILED: 90}.get(program, 30) if not options.quick else 10
        result = clock.run(f"{what}, round {turn + 1}", kind, guess, run)
        if result is None:
            return
        result = {"failed": result} if isinstance(result, str) else dict(result)
        if result.pop("out_of_memory", False):
            result["failed"] = "out of memory"
        result["images_per_second"] = cell["images_per_second"] + result.get("images_per_second", [])
        cell.update(result)
        speed = cell["images_per_second"]
        log(f"{what}:", f"{median(cell):.1f} images/s" if speed else cell["failed"])

    on_gpu = options.device == "cuda"
    programs = [OURS, KERNELS, EAGER] if on_gpu else [OURS, EAGER]
    cases = [("r20", 16)] if options.quick else SPEED
    main_case, *other_cases = cases
    static_and_gated = lambda case: [(case[0], gated, case[1], "synthetic") for gated in (False, True)]  # noqa: E731

    def measure_round(turn):
        for case in static_and_gated(main_case):
            for index in range(len(programs)):
                measure(case, programs[(index + turn) % len(programs)], turn)

    measure_round(0)
    if data["fed"]:
        measure((main_case[0], True, main_case[1], "fed"), OURS, 0)
    measure_round(1)
    for size in other_cases:
        for case in static_and_gated(size):
            for program in programs:
                measure(case, program, 0)
    for turn in range(2, options.rounds):
        measure_round(turn)
    if on_gpu:
        for size in cases[:2]:
            for case in static_and_gated(size):
                measure(case, COMPILED, 0)
    return cells


# Inference.


def time_infer(options, net, batch, words):
    """Milliseconds per batch of the static backbone and of the gated network, and the ratio of their MACs; or the error."""
    command = [options.codinet_train.with_name("codinet-infer"), "bench", "--config", f"{CONFIGS[net]}.yaml", "--device", options.device]
    command += ["--batch", str(batch), "--share", "60", "--rounds", "3" if options.quick else "9", *words]
    try:
        done = subprocess.run(command, env=environment(options, True), capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "not done in 120 s"
    except OSError as error:
        return str(error)
    if done.returncode:
        return error_line(done.stderr)
    row = done.stdout.splitlines()[-1].split(maxsplit=1)[1]
    _, _, static, gated, _, _, _, by_macs, *_ = map(float, re.findall(r"[\d.]+", row))
    return {"static": static, "gated": gated, "by_macs": by_macs}


def check_inference(options, clock):
    """The rows of the table of inference."""
    on_gpu = options.device == "cuda"
    net, batches = ("r20", [16]) if options.quick else ("r50", [1, 256])
    variants = [["--precision", "bf16", "--gather", gather] for gather in ("0", "100")] if on_gpu else [[]]
    rows = []
    for batch in batches:
        for words in variants:
            what = f"ResNet-{net[1:]}, {batch} images{', ' if words else ''}{' '.join(words)}"
            result = clock.run(f"inference, {what}", "inference", 20, lambda: time_infer(options, net, batch, words))  # noqa: B023
            if result is not None:
                rows.append({"what": what, **({"failed": result} if isinstance(result, str) else result)})
                log(f"inference, {what}:", result)
    return rows


def driver_version():
    path = pathlib.Path("/proc/driver/nvidia/version")
    words = path.read_text().split("\n")[0].split() if path.exists() else []
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="only ResNet-20, two rounds of a few steps")
    parser.add_argument("--fresh", action="store_true", help="measure again what an earlier call has measured")
    parser.add_argument("--minutes", type=float, default=9.5, help="time limit")
    parser.add_argument("--rounds", type=int, default=3, help="at most")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--codinet-train", type=pathlib.Path)
    parser.add_argument("--libraries", type=pathlib.Path, help="a folder with libtorch_cuda.so and the libraries it loads")
    parser.add_argument("--photos", type=pathlib.Path, help="photographs for the loader-fed run")
    parser.add_argument("--output", dest="out", type=pathlib.Path, default=pathlib.Path("."))
    options = parser.parse_args()
    clock = Clock(options.minutes)
    try:
        import torch
    except ImportError:
        fail("this Python has no torch; pip install torch==2.11.0, or set PYTHON to a Python that has it")
    if options.device == "cuda" and not torch.cuda.is_available():
        fail("PyTorch finds no GPU; check the driver, or run the same code with --device cpu --quick")
    if options.device == "cpu" and not options.quick:
        fail("--device cpu needs --quick; the full measurement would take hours on a CPU")
    built = ROOT / "target/release/codinet-train"
    program = options.codinet_train or (built if built.exists() else shutil.which("codinet-train"))
    if not program:
        fail("no codinet-train in target/release or on the PATH; run make build, or set --codinet-train")
    options.codinet_train = pathlib.Path(program).resolve()
    if not options.libraries and options.device == "cuda" and torch.__version__.startswith("2.11."):
        options.libraries = pathlib.Path(torch.__file__).parent / "lib"
    version = subprocess.run([options.codinet_train, "--version"], capture_output=True, text=True, env=environment(options, True))
    if version.returncode:
        fail(f"{program} does not start: {version.stderr.strip()}")
    options.rounds = 2 if options.quick else options.rounds
    options.out.mkdir(parents=True, exist_ok=True)

    nets = ["r20"] if options.quick else ["r50", "r101"]
    facts = run_twin("facts", {"nets": nets, "device": options.device, "small": options.quick})
    if isinstance(facts, str) or "name" not in facts:
        fail(f"twin.py failed: {facts}")
    facts.update(driver=driver_version() if options.device == "cuda" else "none", cores=len(os.sched_getaffinity(0)))
    log(f"{facts['name']}, {facts['measured']}")
    identity = [version.stdout.strip(), facts["name"], facts["driver"], facts["torch"], options.quick]
    clock.resume(options.out / "gpu-check.results.json", identity, options.fresh)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        shards(folder / "grey", 28, 1, 256, 1)
        shards(folder / "coloured", 32, 3, 512, 1 if options.quick else 100)
        result = {
            "date": datetime.date.today().isoformat(),
            "version": version.stdout.strip(),
            "device": facts,
            "tolerances": TOLERANCES,
            "spreads": SPREADS,
            "right": check_numerics(options, folder, clock),
            "inference": check_inference(options, clock),
        }
        fed, result["fed"] = loader_source(options, folder)
        synthetic = folder / ("grey" if options.quick else "coloured")
        data = {"synthetic": synthetic, "val": synthetic, "fed": fed}
        cells = check_speed(options, data, clock)
    rows = []
    for (net, gated, images, source), programs in cells.items():
        row = {"net": net, "gated": gated, "images": images, "source": source, "programs": programs}
        rows.append({**row, "floors": floors(facts, net, gated, images)})
    result.update(fast=rows, goals=goals(rows, facts), left_out=clock.left_out)
    text = table(result)
    (options.out / "gpu-check.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "gpu-check.md").write_text(text + "\n")
    print(text)
    if not result["right"]:
        fail("the time was too short for a comparison of GPU and CPU; the same command continues")
    if any(verdict(row) == "wrong" for row in result["right"]):
        fail("the GPU and the CPU disagree; see the first table")
    if not all(row["right"] for row in result["right"]):
        fail("a comparison of GPU and CPU did not run; see the first table")


if __name__ == "__main__":
    main()
