#!/usr/bin/env python3
"""Compares codinet-train with PyTorch DDP (ddp.py) on the CPU: same network, data, batch, precision and threads.

    tests/bench/compare.py check                    # checks first that both train the same network
    tests/bench/compare.py speed --rounds 3         # images/s of both, as a table
    tests/bench/compare.py speed --cases imagenet_r50 --photos FOLDER
    tests/bench/compare.py speed --gates none       # the static network
    tests/bench/compare.py collectives              # bytes and time in MPI, call by call
    tests/bench/compare.py host                     # where a step's time goes, with perf

Run it in the repository's root on an otherwise idle machine. Needs: pip install torch==2.11.0 numpy pillow; mpirun;
codinet-train in target/release or on the PATH; for `collectives` mpicc, for `host` perf (Debian: linux-perf).

Speed: each program runs once per round. Each round starts with another program, so that disturbances of the machine
affect all programs alike. Each rank has one thread, and mpirun binds it to one core, for both. Images/s are those of the
steps after the warm-up. For codinet-train they come from metrics.jsonl and include loading, collectives and the update, not
evaluation or checkpoints; for PyTorch the same parts are timed. The ratio is to the fastest of PyTorch eager in two memory
formats, and torch.compile, whose first step, with the compilation, is given apart.
imagenet_r50 takes 8 images per rank and step: codinet-train decodes JPEGs from shards under --photos (train/ and val/),
PyTorch reuses one random tensor at no cost.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
LAYOUTS = ["channels_last", "contiguous"]
# Steps between two lines of metrics.jsonl, lines of warm-up, lines measured.
PLANS = {"fashion_r20": (5, 1, 4), "imagenet_r50": (2, 1, 2)}


def samples(case, ranks):
    """Samples per step over all ranks."""
    return 64 if case == "fashion_r20" else 4 * ranks


def mpirun(ranks, command, env=None):
    """Starts `command` on `ranks` ranks, each bound to its own core."""
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    exports = [part for name in env or {} for part in ("-x", name)]
    command = ["mpirun", *root, "--bind-to", "core", "-n", str(ranks), *exports, *map(str, command)]
    return subprocess.Popen(command, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def our_command(options, case, dtype, ranks, folder, log_every):
    train = options.data / "train"
    val = options.data / "test"
    settings = [f"run={{dir: {folder / 'run'}, threads: 1, precision: {dtype}, log_every: {log_every}, device: cpu}}"]
    settings += [f"optim.batch_size={samples(case, ranks)}"]
    if case == "imagenet_r50":
        train = repeat_shards(options.photos / "train", folder)
        val = options.photos / "val"
        settings += ["cost.calibration_samples=2"]
    settings += [f"data.train={train}", f"data.val={val}", f"model.gates={options.gates}", *options.set]
    return [options.codinet_train, f"{case}.yaml", *(part for setting in settings for part in ("--set", setting))]


def repeat_shards(photos, folder):
    """A folder with links to the same shards 20 times, so that an epoch is longer than the measurement."""
    out = folder / "photos"
    out.mkdir()
    for copy in range(20):
        for shard in photos.glob("*.tar"):
            (out / f"{copy:02}-{shard.name}").symlink_to(shard.resolve())
    return out


def train_lines(path):
    """The complete training lines of a metrics.jsonl."""
    text = path.read_text() if path.exists() else ""
    complete = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in complete if line["kind"] == "train"]


def wait_for_lines(process, metrics, lines):
    """Waits until metrics.jsonl has `lines` training lines."""
    while len(train_lines(metrics)) < lines:
        if process.poll() is not None:
            sys.exit(f"compare.py: codinet-train ended early:\n{process.communicate()[1]}")
        time.sleep(0.1)


def terminate(process):
    process.terminate()
    process.communicate()


def time_codinet_train(options, case, dtype, ranks, settings=()):
    """Images/s of codinet-train."""
    log_every, warm_up, lines = PLANS[case]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        command = our_command(options, case, dtype, ranks, folder, log_every)
        process = mpirun(ranks, command + [part for setting in settings for part in ("--set", setting)])
        wait_for_lines(process, folder / "run/metrics.jsonl", warm_up + lines)
        terminate(process)
        measured = train_lines(folder / "run/metrics.jsonl")[warm_up : warm_up + lines]
    return statistics.harmonic_mean([line["images_per_second"] for line in measured])


def time_pytorch(options, case, dtype, ranks, layout, compiled=False, env=None):
    """Images/s of ddp.py."""
    log_every, warm_up, lines = PLANS[case]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, HERE / "ddp.py", case, "--dtype", dtype, "--layout", layout, "--threads", 1]
    command += ["--batch", samples(case, ranks), "--warm-up", warm_up * log_every, "--steps", lines * log_every]
    command += ["--gates", options.gates, *(["--compile"] if compiled else [])]
    command += ["--data", options.data / "train"] if case == "fashion_r20" else []
    process = mpirun(ranks, command, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", **(env or {})})
    out, error = process.communicate()
    if process.returncode:
        sys.exit(f"compare.py: ddp.py failed:\n{error}")
    measured = json.loads(out)
    if compiled:
        print(f"torch.compile: first step {measured['first_step']:.0f} s", file=sys.stderr, flush=True)
    return measured["images_per_second"]


def allocator_settings():
    """The settings of glibc's allocator that codinet-train sets at start-up, read from its source."""
    for path in sorted((HERE.parents[1] / "trainer/src").rglob("*.rs")):
        settings = re.findall(r"glibc\.malloc\.[\w.]+=\d+:?", path.read_text().split("const NAME")[0])
        if settings:
            return {"GLIBC_TUNABLES": "".join(settings)}
    sys.exit("compare.py: trainer/src sets no glibc.malloc tunables")


def speed(options):
    programs = {"codinet-train": time_codinet_train, "without overlap": lambda *case: time_codinet_train(*case, ["collective.overlap=false"])}
    for layout in LAYOUTS:
        programs[f"PyTorch, {layout}"] = lambda *case, layout=layout: time_pytorch(*case, layout)
    programs["torch.compile, channels_last"] = lambda *case: time_pytorch(*case, "channels_last", compiled=True)
    peers = list(programs)[2:]
    programs["PyTorch, channels_last, our allocator settings"] = lambda *case: time_pytorch(*case, "channels_last", env=allocator_settings())
    results = collections.defaultdict(list)
    cases = [(case, dtype, ranks) for case in options.cases for dtype in options.dtypes for ranks in options.ranks]
    for turn in range(options.rounds):
        names = list(programs)
        names = names[turn % len(names) :] + names[: turn % len(names)]
        for case in cases:
            for name in names:
                results[case, name].append(programs[name](options, *case))
                print(f"round {turn + 1}", *case, f"{name}: {results[case, name][-1]:.1f} images/s", file=sys.stderr, flush=True)
    print("| config | precision | ranks | " + " | ".join(programs) + " | ratio | each round |")
    print("|---" * (5 + len(programs)) + "|")
    for case in cases:
        speeds = {name: results[case, name] for name in programs}
        peer = max(peers, key=lambda name: statistics.median(speeds[name]))
        ratio = statistics.median(speeds["codinet-train"]) / statistics.median(speeds[peer])
        each = [a / b for a, b in zip(speeds["codinet-train"], speeds[peer])]
        cells = [f"{statistics.median(s):.1f} ({min(s):.1f} to {max(s):.1f})" for s in speeds.values()]
        cells += [f"**{ratio:.2f}**", " ".join(f"{ratio:.2f}" for ratio in each)]
        print("| " + " | ".join([*map(str, case), *cells]) + " |")
    print(f"\nimages/s: median of {options.rounds} rounds (min to max); gates: {options.gates}; the ratio is to the fastest PyTorch, as installed.")


# Checks that both train the same network.


def read_safetensors(path):
    """Reads a safetensors file by its published layout: a length, a table in JSON, the bytes."""
    import torch

    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    table = json.loads(content[8 : 8 + length])
    table.pop("__metadata__", None)
    result = {}
    for name, entry in table.items():
        assert entry["dtype"] == "F32", name
        first, last = (8 + length + offset for offset in entry["data_offsets"])
        result[name] = torch.frombuffer(content[first:last], dtype=torch.float32).view(entry["shape"])
    return result


def count_macs(net, case):
    """MACs of one image by layer name, counted in a real forward pass."""
    import torch

    result = {}

    def count(name):
        def hook(layer, _, out):
            result[name] = layer.weight.numel() * (out[0, 0].numel() if out.dim() == 4 else 1)

        return hook

    layers = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))]
    hooks = [layer.register_forward_hook(count(name)) for name, layer in layers]
    with torch.no_grad():
        net.eval()(torch.zeros(1, case.channels, case.size, case.size), None)
    for hook in hooks:
        hook.remove()
    return result


def check_close(what, ours, theirs, tolerance):
    off = abs(ours - theirs) / max(abs(theirs), 1e-12)
    print(f"{what}: {ours:.8g}, in PyTorch {theirs:.8g}")
    if off > tolerance:
        sys.exit(f"compare.py: {what} differs by {off:.2g}")


def check(options):
    import ddp

    for name, case in ddp.CASES.items():
        output = subprocess.run([options.codinet_train, f"{name}.yaml", "--dry-run", "--no-data"], capture_output=True, text=True).stdout
        parameters, gmacs = re.search(r"(\d+) parameters · ([\d.]+) GMACs static", output).groups()
        net = case.net()
        static = [macs for layer, macs in count_macs(net, case).items() if not re.search(r"\.(router|skip)\.", layer)]
        check_close(f"{name}: parameters", int(parameters), sum(p.numel() for p in net.parameters()), 0)
        check_close(f"{name}: GMACs, static", float(gmacs), round(sum(static) / 1e9, 6), 0)
        check_reference(name, case)
    check_weights(options, ddp.CASES["fashion_r20"])


def check_reference(name, case):
    """Compares the fast forward pass, losses and gradients of ddp.py with the plain ones of reference.py, in fp64."""
    import ddp
    import torch
    import torch.nn.functional as F
    from ddp import reference

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    fast = case.net()
    plain = reference.Net(case.kind, case.depths, case.stride_in, case.channels, case.classes, fast.option)
    plain.load_state_dict(fast.state_dict())
    n = 3 * case.views
    gates = len(fast.gated())
    x = torch.randn(n, case.channels, 64, 64)
    noise = torch.randn(n, gates)
    labels = torch.arange(n) % case.classes
    cost = torch.linspace(0.5, 1.5, gates)
    sums = []
    for net in (fast, plain):
        logits, _, path = net.train()(x, noise)
        if net is fast:
            keys = path.detach().view(-1, case.views, gates).mean(1)
            parts = ddp.losses(path, keys, 0, cost, case.views, 0.05, 2.0)
        else:
            parts = reference.losses(path, cost, case.views, 0.05, 2.0)
        assert all(part > 0 for part in parts), "a loss is 0, so the comparison checks nothing"
        loss = F.cross_entropy(logits, labels) + sum(parts)
        loss.backward()
        sums.append(loss.item())
    torch.set_default_dtype(torch.float32)
    check_close(f"{name}: loss of ddp.py and of reference.py", *sums, 1e-10)
    off = max((a.grad - b.grad).norm() / b.grad.norm().clamp(min=1e-12) for a, b in zip(fast.parameters(), plain.parameters()))
    print(f"{name}: gradients of ddp.py and of reference.py differ by at most {off:.1g}")
    assert off < 1e-6, "gradients differ"


def check_weights(options, case):
    """Evaluates weights trained by codinet-train in PyTorch: cross entropy, top-1 and MACs of the validation images."""
    import ddp
    import torch
    import torch.nn.functional as F

    with tempfile.TemporaryDirectory() as folder:
        command = our_command(options, "fashion_r20", "fp32", 1, pathlib.Path(folder), 20)
        for setting in ["data.train_samples=3840", "stages=[{epochs: 1, lr: 0.05}]"]:
            command += ["--set", setting]
        process = mpirun(1, command)
        error = process.communicate()[1]
        if process.returncode:
            sys.exit(f"compare.py: codinet-train failed:\n{error}")
        run = pathlib.Path(folder) / "run"
        summary = json.loads((run / "summary.json").read_text())
        checkpoints = run / "checkpoints"
        weights = read_safetensors(checkpoints / (checkpoints / "latest").read_text().strip() / "model.safetensors")
    net = case.net()
    missing, unexpected = net.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)
    pixels, labels = ddp.read(options.data / "test", 0, summary["validation_images"])
    images = ((pixels.float() / 255 - case.mean[0]) / case.std[0]).unsqueeze(1)
    with torch.no_grad():
        outs = [net.eval()(part, None) for part in images.split(500)]
    logits = torch.cat([out[0] for out in outs])
    path = torch.cat([out[2] for out in outs])
    blocks = [name for name, module in net.named_modules() if isinstance(module, ddp.reference.Block)]
    rates = dict(zip(blocks, path.mean(0).tolist()))

    def share(layer):
        """The share of images for which the layer runs."""
        inside = re.match(r"(layer\d+\.\d+)\.(\w+)", layer)
        if not inside or inside[2] == "router":
            return 1.0
        return 1.0 - rates[inside[1]] if inside[2] == "skip" else rates[inside[1]]

    mean = sum(share(layer) * macs for layer, macs in count_macs(net, case).items())
    print(f"run rates of the gates: {' '.join(f'{rate:.2f}' for rate in rates.values())}")
    check_close("validation cross entropy", summary["ce"], F.cross_entropy(logits, labels).item(), 1e-4)
    check_close("top-1", summary["top1"], (logits.argmax(1) == labels).float().mean().item(), 1e-3)
    check_close("GMACs per image", summary["gmacs"], mean / 1e9, 1e-3)


# Bytes and time in collectives.


def collectives(options):
    """Runs codinet-train with mpi_time.c: bytes per step, the wait for other ranks, and the duration after it."""
    print("| config | precision | ranks | call | bytes | step | wait, ms | duration, ms | share of a step |\n" + "|---" * 9 + "|")
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder) / "mpi_time.so"
        subprocess.run(["mpicc", "-O2", "-shared", "-fPIC", "-o", library, HERE / "mpi_time.c", "-ldl"], check=True)
        for case in options.cases:
            for dtype in options.dtypes:
                for ranks in options.ranks:
                    if ranks > 1:
                        measure_collectives(options, case, dtype, ranks, library)


def measure_collectives(options, case, dtype, ranks, library):
    log_every, warm_up, lines = PLANS[case]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        command = our_command(options, case, dtype, ranks, folder, log_every)
        env = {"LD_PRELOAD": str(library), "MPI_TIME": str(folder / "calls")}
        process = mpirun(ranks, ["env", *(f"{name}={value}" for name, value in env.items()), *command])
        wait_for_lines(process, folder / "run/metrics.jsonl", warm_up + lines)
        terminate(process)
        calls = [line.split() for line in (folder / "calls.0").read_text().splitlines(keepends=True) if line.endswith("\n")]
        measured = train_lines(folder / "run/metrics.jsonl")[warm_up : warm_up + lines]
    speed = statistics.harmonic_mean([line["images_per_second"] for line in measured])
    step = 2 * samples(case, ranks) / speed
    steps = log_every * lines
    kinds = collections.Counter((call, int(size)) for call, size, *_ in calls[-3 * steps :])
    for (call, size), count in sorted(kinds.items(), key=lambda kind: kind[0][1]):
        if count < steps // 2:
            continue  # only at start-up, or occasional
        of_kind = [line for line in calls if (line[0], int(line[1])) == (call, size)][-steps:]
        wait = statistics.median(float(line[2]) for line in of_kind)
        duration = statistics.median(float(line[3]) for line in of_kind)
        cells = [case, dtype, ranks, call, size, f"{1e3 * step:.1f} ms", f"{1e3 * wait:.2f}", f"{1e3 * duration:.2f}", f"{100 * duration / step:.2f} %"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


# Where a step's time goes.

# Classified by the innermost frame in user space. The operating system's work, such as page faults, counts for its caller.
KERNELS = re.compile(r"at::native|dnnl|function_ref|at::vec|gemm|mkl_|cpublas|xbyak|at::parallel|caffe2|xsimd|sleef", re.I)
MPI = re.compile(r"lib(mpi|open-pal|open-rte|pmix|event|hwloc)|mca_|btl_|vader")


def classify(binary, symbol):
    if "JIT" in binary or "anon" in binary or "perf-" in binary or "libgomp" in binary:
        return "libtorch's kernels"
    if "libtorch" in binary or "libc10" in binary or "libstdc++" in binary:
        return "libtorch's kernels" if KERNELS.search(symbol) else "libtorch's dispatch and autograd"
    if "codinet-train" in binary:
        return "codinet-train's kernels" if "pulp::" in symbol else "codinet-train's other code"
    if MPI.search(binary):
        return "MPI, waiting included"
    if "libm." in binary or "libmvec" in binary:
        return "libm"
    if re.search(r"libc\W|ld-linux", binary):
        return "libc: memory copies" if re.search("mem(cpy|move|set)", symbol) else "libc: malloc, free and the rest"
    return f"other ({pathlib.Path(binary).name})"


def host(options):
    """Samples rank 0 with perf at 499 Hz of its CPU time. It needs no hardware counters, so it works in most VMs."""
    if not shutil.which("perf"):
        sys.exit("compare.py: no perf; on Debian: apt-get install linux-perf")
    for case in options.cases:
        for dtype in options.dtypes:
            for ranks in options.ranks:
                measure_host(options, case, dtype, ranks)


def measure_host(options, case, dtype, ranks):
    log_every, warm_up, lines = PLANS[case]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        process = mpirun(ranks, our_command(options, case, dtype, ranks, folder, log_every))
        metrics = folder / "run/metrics.jsonl"
        wait_for_lines(process, metrics, warm_up)
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        before = len(train_lines(metrics))
        record = ["perf", "record", "-q", "-N", "-e", "cpu-clock", "-F", "499", "-g", "-p", children[0], "-o", folder / "perf.data"]
        subprocess.run([*record, "--", "sleep", str(options.seconds)], check=True)
        measured = train_lines(metrics)[before:] or train_lines(metrics)
        terminate(process)
        script = ["perf", "script", "-i", folder / "perf.data", "-F", "comm,tid,ip,sym,dso", "--no-inline"]
        text = subprocess.run(script, check=True, capture_output=True, text=True, errors="replace").stdout
    step = 2 * samples(case, ranks) / statistics.harmonic_mean([line["images_per_second"] for line in measured])
    main = collections.Counter()
    others = collections.Counter()
    faults = 0
    for sample in text.strip().split("\n\n"):
        head, *frames = sample.splitlines()
        thread = head.rsplit(None, 1)[0].strip()
        frames = [re.match(r"\s*[0-9a-f]+ (.*) \((.*)\)$", frame) for frame in frames]
        frames = [frame.groups() for frame in frames if frame]
        user = [(symbol, binary) for symbol, binary in frames if "kernel" not in binary]
        if thread != "codinet-train":
            others[thread] += 1
        elif not user:
            main["operating system"] += 1
        else:
            main[classify(user[0][1], user[0][0])] += 1
            faults += user != frames
    total = sum(main.values())
    print(f"\n{case}, {dtype}, {ranks} rank(s): {total} samples of rank 0's main thread, {1e3 * step:.0f} ms per step\n")
    print("| part | share | ms per step |\n|---|---|---|")
    for name, count in main.most_common():
        print(f"| {name} | {100 * count / total:.2f} % | {1e3 * step * count / total:.2f} |")
    kernels = main["libtorch's kernels"] + main["codinet-train's kernels"] + main["libc: memory copies"]
    libtorch = kernels + main["libtorch's dispatch and autograd"] + main["libc: malloc, free and the rest"]
    print(f"\noutside kernels: {100 * (1 - kernels / total):.2f} %; outside libtorch and its malloc: {100 * (1 - libtorch / total):.2f} %")
    print(f"in the operating system (mostly first page faults), included above: {100 * faults / total:.2f} %")
    print(f"other threads: {', '.join(f'{name} {100 * count / total:.2f} %' for name, count in others.items()) or 'none'}")


def main():
    commands = {"check": check, "speed": speed, "collectives": collectives, "host": host}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--cases", nargs="+", choices=PLANS, default=["fashion_r20"])
    parser.add_argument("--dtypes", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--gates", choices=["all", "none"], default="all", help="none: the static network")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=15, help="duration of `host`")
    parser.add_argument("--data", type=pathlib.Path, default="data/fashion-mnist", help="shards of Fashion-MNIST")
    parser.add_argument("--photos", type=pathlib.Path, help="shards of photographs, for imagenet_r50")
    parser.add_argument("--set", action="append", default=[], help="an additional setting for codinet-train")
    parser.add_argument("--codinet-train", type=pathlib.Path, help="the program; default: target/release or the PATH")
    options = parser.parse_args()
    built = HERE.parent.parent / "target/release/codinet-train"
    options.codinet_train = options.codinet_train or (built if built.exists() else shutil.which("codinet-train"))
    if not options.codinet_train:
        sys.exit("compare.py: no codinet-train in target/release or on the PATH; run make build, or set --codinet-train")
    if "imagenet_r50" in options.cases and options.command != "check" and not options.photos:
        sys.exit("compare.py: imagenet_r50 needs --photos FOLDER, with shards in FOLDER/train and FOLDER/val")
    commands[options.command](options)


if __name__ == "__main__":
    main()
