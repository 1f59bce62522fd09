#!/usr/bin/env python3
"""Holds codinet-train against PyTorch DDP (ddp.py) on the CPU: same network, data, batch, precision and threads.

    tests/bench/compare.py check                    # that it is the same network, before any speed
    tests/bench/compare.py speed --rounds 3         # images/s beside each other, as a table
    tests/bench/compare.py speed --cases imagenet_r50 --photos FOLDER
    tests/bench/compare.py collectives              # bytes and time in MPI, call by call
    tests/bench/compare.py host                     # where a step's time goes, by perf

Run it in the repository's root on an otherwise idle machine. Needs: pip install torch==2.11.0 numpy pillow; mpirun;
codinet-train in target/release or on the PATH; for `collectives` mpicc, for `host` perf (Debian: linux-perf).

Speed: every program runs once a round, one after the other, and rounds start with another program each, so that
whatever the machine does meanwhile meets all alike. Each rank has one thread, and mpirun binds it to one core, for
both. Images/s are those of the steps after the warm-up: of codinet-train, as metrics.jsonl has them, which take in
loading, the collectives and the update, not evaluation or checkpoints; of PyTorch, around the same. PyTorch's faster
memory format is the one that counts. imagenet_r50 takes 8 images per rank and step: codinet-train decodes JPEGs from
shards under --photos (train/ and val/), PyTorch has the same random tensor at each step, at no cost.
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
# Steps between two lines of metrics.jsonl, lines of warm-up, lines measured; samples per step, of one rank or of all.
PLANS = {"fashion_r20": (5, 1, 4), "imagenet_r50": (2, 1, 2)}


def samples(case, ranks):
    return 64 if case == "fashion_r20" else 4 * ranks


def mpirun(ranks, command, env=None):
    """Starts `command` on `ranks` ranks, each on a core of its own."""
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    exports = [part for name in env or {} for part in ("-x", name)]
    command = ["mpirun", *root, "--bind-to", "core", "-n", str(ranks), *exports, *map(str, command)]
    return subprocess.Popen(command, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def our_command(options, case, dtype, ranks, folder, log_every):
    train, val = options.data / "train", options.data / "test"
    settings = [f"run={{dir: {folder / 'run'}, threads: 1, precision: {dtype}, log_every: {log_every}, device: cpu}}"]
    settings += [f"optim.batch_size={samples(case, ranks)}"]
    if case == "imagenet_r50":
        train, val = several(options.photos / "train", folder), options.photos / "val"
        settings += ["cost.calibration_samples=2"]
    settings += [f"data.train={train}", f"data.val={val}", *options.set]
    return [options.codinet_train, f"{case}.yaml", *(part for setting in settings for part in ("--set", setting))]


def several(photos, folder):
    """A folder with the same shards again and again, so that an epoch is longer than what is measured."""
    out = folder / "photos"
    out.mkdir()
    for copy in range(20):
        for shard in photos.glob("*.tar"):
            (out / f"{copy:02}-{shard.name}").symlink_to(shard.resolve())
    return out


def lines_of(path):
    text = path.read_text() if path.exists() else ""
    whole = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in whole if line["kind"] == "train"]


def until(process, metrics, lines):
    """Waits for so many lines of training in metrics.jsonl."""
    while len(lines_of(metrics)) < lines:
        if process.poll() is not None:
            sys.exit(f"compare.py: codinet-train ended early:\n{process.communicate()[1]}")
        time.sleep(0.1)


def end(process):
    process.terminate()
    process.communicate()


def ours(options, case, dtype, ranks, settings=()):
    log_every, warm_up, lines = PLANS[case]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        command = our_command(options, case, dtype, ranks, folder, log_every)
        process = mpirun(ranks, command + [part for setting in settings for part in ("--set", setting)])
        until(process, folder / "run/metrics.jsonl", warm_up + lines)
        end(process)
        measured = lines_of(folder / "run/metrics.jsonl")[warm_up : warm_up + lines]
    return statistics.harmonic_mean([line["images_per_second"] for line in measured])


def theirs(options, case, dtype, ranks, layout, env=None):
    log_every, warm_up, lines = PLANS[case]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, HERE / "ddp.py", case, "--dtype", dtype, "--layout", layout, "--threads", 1]
    command += ["--batch", samples(case, ranks), "--warm-up", warm_up * log_every, "--steps", lines * log_every]
    command += ["--data", options.data / "train"] if case == "fashion_r20" else []
    process = mpirun(ranks, command, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", **(env or {})})
    out, error = process.communicate()
    if process.returncode:
        sys.exit(f"compare.py: ddp.py failed:\n{error}")
    return json.loads(out)["images_per_second"]


def allocator():
    """The settings of glibc's allocator that codinet-train starts itself with."""
    source = (HERE.parents[1] / "trainer/src/memory.rs").read_text()
    return {"GLIBC_TUNABLES": "".join(re.findall(r"glibc\.malloc\.[\w.]+=\d+:?", source.split("const NAME")[0]))}


def speed(options):
    programs = {"codinet-train": ours, "without overlap": lambda *case: ours(*case, ["collective.overlap=false"])}
    for layout in LAYOUTS:
        programs[f"PyTorch, {layout}"] = lambda *case, layout=layout: theirs(*case, layout)
    peers = list(programs)[2:]
    programs["PyTorch, channels_last, allocator as ours"] = lambda *case: theirs(*case, "channels_last", allocator())
    found = collections.defaultdict(list)
    cases = [(case, dtype, ranks) for case in options.cases for dtype in options.dtypes for ranks in options.ranks]
    for turn in range(options.rounds):
        names = list(programs)
        names = names[turn % len(names) :] + names[: turn % len(names)]
        for case in cases:
            for name in names:
                found[case, name].append(programs[name](options, *case))
                print(f"round {turn + 1}", *case, f"{name}: {found[case, name][-1]:.1f} images/s", file=sys.stderr, flush=True)
    print("| config | precision | ranks | " + " | ".join(programs) + " | ratio | of each round |")
    print("|---" * (5 + len(programs)) + "|")
    for case in cases:
        speeds = {name: found[case, name] for name in programs}
        peer = max(peers, key=lambda name: statistics.median(speeds[name]))
        ratio = statistics.median(speeds["codinet-train"]) / statistics.median(speeds[peer])
        each = [a / b for a, b in zip(speeds["codinet-train"], speeds[peer])]
        cells = [f"{statistics.median(s):.1f} ({min(s):.1f} to {max(s):.1f})" for s in speeds.values()]
        cells += [f"**{ratio:.2f}**", " ".join(f"{one:.2f}" for one in each)]
        print("| " + " | ".join([*map(str, case), *cells]) + " |")
    print(f"\nimages/s: median of {options.rounds} rounds (least to most); the ratio is to PyTorch's faster format, as it is installed.")


# Whether it is the same network.


def tensors_of(path):
    """A safetensors file, by its published layout: a length, a table in JSON, the bytes."""
    import torch

    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    table = json.loads(content[8 : 8 + length])
    table.pop("__metadata__", None)
    found = {}
    for name, entry in table.items():
        assert entry["dtype"] == "F32", name
        first, last = (8 + length + offset for offset in entry["data_offsets"])
        found[name] = torch.frombuffer(content[first:last], dtype=torch.float32).view(entry["shape"])
    return found


def macs_of(net, case):
    """MACs of one image by name of layer, counted on a real forward pass."""
    import torch

    found = {}

    def count(name):
        def hook(layer, _, out):
            found[name] = layer.weight.numel() * (out[0, 0].numel() if out.dim() == 4 else 1)

        return hook

    layers = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))]
    hooks = [layer.register_forward_hook(count(name)) for name, layer in layers]
    with torch.no_grad():
        net.eval()(torch.zeros(1, case.channels, case.size, case.size), None)
    for hook in hooks:
        hook.remove()
    return found


def near(what, ours, theirs, within):
    off = abs(ours - theirs) / max(abs(theirs), 1e-12)
    print(f"{what}: {ours:.8g}, in PyTorch {theirs:.8g}")
    if off > within:
        sys.exit(f"compare.py: {what} is off by {off:.2g}")


def check(options):
    import ddp

    for name, case in ddp.CASES.items():
        said = subprocess.run([options.codinet_train, f"{name}.yaml", "--dry-run"], capture_output=True, text=True).stdout
        parameters, gmacs = re.search(r"(\d+) parameters · ([\d.]+) GMACs static", said).groups()
        net = case.net()
        static = [macs for layer, macs in macs_of(net, case).items() if not re.search(r"\.(router|skip)\.", layer)]
        near(f"{name}: parameters", int(parameters), sum(p.numel() for p in net.parameters()), 0)
        near(f"{name}: GMACs, static", float(gmacs), round(sum(static) / 1e9, 6), 0)
        check_reference(name, case)
    check_weights(options, ddp.CASES["fashion_r20"])


def check_reference(name, case):
    """The fast forward pass and losses of ddp.py against the plain ones, in fp64, gradients too."""
    import ddp
    import torch
    import torch.nn.functional as F
    from ddp import reference

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    fast = case.net()
    plain = reference.Net(case.kind, case.depths, case.stride_in, case.channels, case.classes, fast.option)
    plain.load_state_dict(fast.state_dict())
    n, gates = 3 * case.views, len(fast.gated())
    x, noise = torch.randn(n, case.channels, 64, 64), torch.randn(n, gates)
    labels, cost = torch.arange(n) % case.classes, torch.linspace(0.5, 1.5, gates)
    sums = []
    for net in (fast, plain):
        logits, _, path = net.train()(x, noise)
        if net is fast:
            keys = path.detach().view(-1, case.views, gates).mean(1)
            parts = ddp.losses(path, keys, 0, cost, case.views, 0.05, 2.0)
        else:
            parts = reference.losses(path, cost, case.views, 0.05, 2.0)
        assert all(part > 0 for part in parts), "a loss that is 0 checks nothing"
        loss = F.cross_entropy(logits, labels) + sum(parts)
        loss.backward()
        sums.append(loss.item())
    torch.set_default_dtype(torch.float32)
    near(f"{name}: loss of ddp.py and of reference.py", *sums, 1e-10)
    off = max((a.grad - b.grad).norm() / b.grad.norm().clamp(min=1e-12) for a, b in zip(fast.parameters(), plain.parameters()))
    print(f"{name}: gradients of ddp.py and of reference.py differ by at most {off:.1g}")
    assert off < 1e-6, "gradients differ"


def check_weights(options, case):
    """Weights that codinet-train trained, in PyTorch: the validation images' cross entropy, top-1 and MACs."""
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
        weights = tensors_of(checkpoints / (checkpoints / "latest").read_text().strip() / "model.safetensors")
    net = case.net()
    missing, unexpected = net.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)
    pixels, labels = ddp.read(options.data / "test", 0, summary["validation_images"])
    images = ((pixels.float() / 255 - case.mean[0]) / case.std[0]).unsqueeze(1)
    with torch.no_grad():
        outs = [net.eval()(part, None) for part in images.split(500)]
    logits, path = torch.cat([out[0] for out in outs]), torch.cat([out[2] for out in outs])
    blocks = [name for name, module in net.named_modules() if isinstance(module, ddp.reference.Block)]
    rates = dict(zip(blocks, path.mean(0).tolist()))

    def share(layer):
        """Of all images, those that the layer runs for."""
        inside = re.match(r"(layer\d+\.\d+)\.(\w+)", layer)
        if not inside or inside[2] == "router":
            return 1.0
        return 1.0 - rates[inside[1]] if inside[2] == "skip" else rates[inside[1]]

    mean = sum(share(layer) * macs for layer, macs in macs_of(net, case).items())
    print(f"run rates of the gates: {' '.join(f'{rate:.2f}' for rate in rates.values())}")
    near("validation cross entropy", summary["ce"], F.cross_entropy(logits, labels).item(), 1e-4)
    near("top-1", summary["top1"], (logits.argmax(1) == labels).float().mean().item(), 1e-3)
    near("GMACs per image", summary["gmacs"], mean / 1e9, 1e-3)


# Bytes and time in collectives.


def collectives(options):
    """codinet-train under mpi_time.c: what a step sends, how long ranks wait for one another, how long it takes then."""
    print("| config | precision | ranks | call | bytes | a step | waits, ms | takes, ms | share of a step |\n" + "|---" * 9 + "|")
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder) / "mpi_time.so"
        subprocess.run(["mpicc", "-O2", "-shared", "-fPIC", "-o", library, HERE / "mpi_time.c", "-ldl"], check=True)
        for case in options.cases:
            for dtype in options.dtypes:
                for ranks in options.ranks:
                    if ranks > 1:
                        collectives_of(options, case, dtype, ranks, library)


def collectives_of(options, case, dtype, ranks, library):
    log_every, warm_up, lines = PLANS[case]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        command = our_command(options, case, dtype, ranks, folder, log_every)
        env = {"LD_PRELOAD": str(library), "MPI_TIME": str(folder / "calls")}
        process = mpirun(ranks, ["env", *(f"{name}={value}" for name, value in env.items()), *command])
        until(process, folder / "run/metrics.jsonl", warm_up + lines)
        end(process)
        calls = [line.split() for line in (folder / "calls.0").read_text().splitlines(keepends=True) if line.endswith("\n")]
        measured = lines_of(folder / "run/metrics.jsonl")[warm_up : warm_up + lines]
    speed = statistics.harmonic_mean([line["images_per_second"] for line in measured])
    step = 2 * samples(case, ranks) / speed
    steps = log_every * lines
    kinds = collections.Counter((call, int(size)) for call, size, *_ in calls[-3 * steps :])
    for (call, size), count in sorted(kinds.items(), key=lambda kind: kind[0][1]):
        if count < steps // 2:
            continue  # at the start, or once in a while
        waits, takes = ([float(line[at]) for line in calls if (line[0], int(line[1])) == (call, size)][-steps:] for at in (2, 3))
        wait, take = statistics.median(waits), statistics.median(takes)
        cells = [case, dtype, ranks, call, size, f"{1e3 * step:.1f} ms", f"{1e3 * wait:.2f}", f"{1e3 * take:.2f}", f"{100 * take / step:.2f} %"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


# Where a step's time goes.

# By the innermost frame in user space; the kernel's work, such as a page's first touch, counts where it was asked for.
KERNELS = re.compile(r"at::native|dnnl|function_ref|at::vec|gemm|mkl_|cpublas|xbyak|at::parallel|caffe2|xsimd|sleef", re.I)
MPI = re.compile(r"lib(mpi|open-pal|open-rte|pmix|event|hwloc)|mca_|btl_|vader")


def part(binary, symbol):
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
        return "libc: memory moved" if re.search("mem(cpy|move|set)", symbol) else "libc: malloc, free and the rest"
    return f"elsewhere ({pathlib.Path(binary).name})"


def host(options):
    """Samples rank 0 by perf, 499 times a second of its running; no counters needed, so it works in most VMs."""
    if not shutil.which("perf"):
        sys.exit("compare.py: no perf; on Debian: apt-get install linux-perf")
    for case in options.cases:
        for dtype in options.dtypes:
            for ranks in options.ranks:
                host_of(options, case, dtype, ranks)


def host_of(options, case, dtype, ranks):
    log_every, warm_up, lines = PLANS[case]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        process = mpirun(ranks, our_command(options, case, dtype, ranks, folder, log_every))
        metrics = folder / "run/metrics.jsonl"
        until(process, metrics, warm_up)
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        before = len(lines_of(metrics))
        record = ["perf", "record", "-q", "-N", "-e", "cpu-clock", "-F", "499", "-g", "-p", children[0], "-o", folder / "perf.data"]
        subprocess.run([*record, "--", "sleep", str(options.seconds)], check=True)
        measured = lines_of(metrics)[before:] or lines_of(metrics)
        end(process)
        script = ["perf", "script", "-i", folder / "perf.data", "-F", "comm,tid,ip,sym,dso", "--no-inline"]
        text = subprocess.run(script, check=True, capture_output=True, text=True, errors="replace").stdout
    step = 2 * samples(case, ranks) / statistics.harmonic_mean([line["images_per_second"] for line in measured])
    main, faults, others = collections.Counter(), 0, collections.Counter()
    for sample in text.strip().split("\n\n"):
        head, *frames = sample.splitlines()
        thread = head.rsplit(None, 1)[0].strip()
        frames = [re.match(r"\s*[0-9a-f]+ (.*) \((.*)\)$", frame) for frame in frames]
        frames = [frame.groups() for frame in frames if frame]
        user = [(symbol, binary) for symbol, binary in frames if "kernel" not in binary]
        if thread != "codinet-train":
            others[thread] += 1
        elif not user:
            main["the system, of its own accord"] += 1
        else:
            main[part(user[0][1], user[0][0])] += 1
            faults += user != frames
    total = sum(main.values())
    print(f"\n{case}, {dtype}, {ranks} rank(s): {total} samples of rank 0's main thread, a step of {1e3 * step:.0f} ms\n")
    print("| part | share | ms a step |\n|---|---|---|")
    for name, count in main.most_common():
        print(f"| {name} | {100 * count / total:.2f} % | {1e3 * step * count / total:.2f} |")
    kernels = main["libtorch's kernels"] + main["codinet-train's kernels"] + main["libc: memory moved"]
    libtorch = kernels + main["libtorch's dispatch and autograd"] + main["libc: malloc, free and the rest"]
    print(f"\noutside kernels: {100 * (1 - kernels / total):.2f} %; outside libtorch and its malloc: {100 * (1 - libtorch / total):.2f} %")
    print(f"in the system (mostly pages touched for the first time), part of the above: {100 * faults / total:.2f} %")
    print(f"beside the main thread: {', '.join(f'{name} {100 * count / total:.2f} %' for name, count in others.items()) or 'nothing'}")


def main():
    commands = {"check": check, "speed": speed, "collectives": collectives, "host": host}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--cases", nargs="+", choices=PLANS, default=["fashion_r20"])
    parser.add_argument("--dtypes", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=15, help="how long `host` samples")
    parser.add_argument("--data", type=pathlib.Path, default="data/fashion-mnist", help="shards of Fashion-MNIST")
    parser.add_argument("--photos", type=pathlib.Path, help="shards of photographs, for imagenet_r50")
    parser.add_argument("--set", action="append", default=[], help="a further setting for codinet-train")
    parser.add_argument("--codinet-train", type=pathlib.Path, help="the program; else target/release or the PATH")
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
