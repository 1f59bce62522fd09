#!/usr/bin/env python3
"""Inference on one core: the same networks in codinet-infer, onnxruntime and torch.compile.

    taskset -c 1 tests/bench/inference.py [--nets cifar10_r110 imagenet_r50] [--batch 1 8 64] [--share 40] [--rounds 3]

Networks are untrained. `gated` runs a share of its blocks. codinet-infer computes these: for each image others, drawn at random. Others
compute all blocks and mask; only `skip`, the file of `codinet-export --skip` for one image at a time, computes the same share.
`static` has no gates. `same MACs` is static and has only that share of the blocks, drawn at random: what a gated network must beat.

A round times every program, in turn. The table has the median of the rounds and their smallest and largest; a round's time is the median of
its passes. For one image it also has p99 over the passes of all rounds. torch.compile folds constants and packs weights (`freezing`).
Run it on an idle machine. Needs: pip install torch onnxruntime safetensors numpy pillow pyyaml.
"""

import argparse
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

os.environ["OMP_NUM_THREADS"] = "1"
import numpy  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
import torch._inductor.config  # noqa: E402
import yaml  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples/python"))
import codinet  # noqa: E402
from codinet.network import PLANS  # noqa: E402

BIN = ROOT / "target/release"
CHANGES = {"gated": {}, "static": {"gates": "none"}, "same MACs": {"routing": {"fixed": None}}}


def run(*command):
    return subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True).stdout


class Network:
    """One form of a network: its config, its weights in a file, and the network in PyTorch."""

    def __init__(self, folder, name, form, share):
        stem = folder / f"{name}-{form.replace(' ', '-')}"
        self.config = stem.with_suffix(".yaml")
        self.weights = stem.with_suffix(".safetensors")
        changes = {"model": CHANGES[form], "cost": {"budget_gmacs": None, "calibrate": False}}
        blocks = sum(PLANS[self.read_config(f"{name}.yaml")["model"]["arch"]][1])
        kept = sorted(random.Random(1).sample(range(blocks), round(blocks * share / 100)))
        if form == "same MACs":
            changes["model"]["routing"]["fixed"] = kept
        self.config.write_text(yaml.safe_dump({"extends": f"{name}.yaml", **changes}))
        self.net = build(self.read_config(self.config), kept if form == "same MACs" else range(blocks))
        for index, block in enumerate(block for block in self.net.blocks() if block.gated):
            block.router.fc2.bias.data = torch.tensor([0.0, 1e4] if index in kept else [1e4, 0.0])
        state = self.net.state_dict().items()
        save_file({name: tensor.contiguous() for name, tensor in state if "num_batches" not in name}, self.weights)

    @staticmethod
    def read_config(name):
        """All keys, as codinet-train prints them."""
        return yaml.safe_load(run(BIN / "codinet-train", name, "--dry-run", "--no-data").split("\n\n")[0])

    def images(self, batch):
        meta = self.net.meta
        shape = (batch, meta["channels"], meta["image_size"], meta["image_size"])
        return numpy.random.default_rng(0).standard_normal(shape).astype("f4")

    def onnxruntime(self, *words):
        file = self.weights.with_suffix(".onnx")
        run(BIN / "codinet-export", "--checkpoint", self.weights, "--config", self.config, "--format", "onnx", "--output", file, *words)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"images": x})[0]

    def torch_compile(self):
        net = torch.compile(self.net)
        return lambda x: net(torch.from_numpy(x))[0].numpy()


def build(config, blocks):
    """The network in PyTorch, with PyTorch's initial weights. Only these blocks have convolutions."""
    model = config["model"]
    meta = {key: model[key] for key in ("arch", "gates", "skip", "stride_in", "routing")} | {"router": model["router"]["kind"]}
    meta |= {key: config["data"][key] for key in ("classes", "channels", "image_size", "mean", "std")}
    hidden = model["router"]["hidden"]
    kind, depths = PLANS[model["arch"]]
    small = kind == "small"
    names = [f"layer{stage + 1}.{index}" for stage, depth in enumerate(depths) for index in range(depth)]
    widths = [(16 if small else 64) << stage for stage, depth in enumerate(depths) for _ in range(depth)]
    inputs = [16, *widths[:-1]] if small else [64, *(4 * width for width in widths[:-1])]
    shapes = {}
    for index, (name, width) in enumerate(zip(names, inputs)):
        shapes[f"{name}.router.fc1.weight"] = torch.empty(hidden.get("units") or round(hidden["ratio"] * width), width)
        if index in blocks:
            shapes |= {f"{name}.{part}.weight": torch.empty(0) for part in ["conv1", *([] if small else ["downsample.0"])]}
    torch.manual_seed(0)
    return codinet.CoDiNet(meta, shapes).eval()


def milliseconds(function, x):
    """The time of each pass: passes for two seconds, and at least two; at least 100 for one image."""
    times = []
    while sum(times) < 2000 or len(times) < (100 if len(x) == 1 else 2):
        start = time.perf_counter()
        function(x)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def time_infer(network, batch, share):
    """Of codinet-infer: the median of its passes, and p99."""
    command = [BIN / "codinet-infer", "bench", "--config", network.config, "--batch", batch, "--share", share, "--threads", 1]
    printed = run(*command, "--rounds", {1: 10, 8: 5}.get(batch, 2))
    _, _, _, _, p50, p99, *_ = map(float, re.findall(r"[\d.]+", printed.splitlines()[-1].split(maxsplit=1)[1]))
    return p50, p99


def programs(networks, batch, share):
    """(form, program, function that times a round); logits are compared first."""
    rows = []
    for form, network in networks.items():
        x = network.images(batch)
        rows.append((form, "codinet-infer", lambda network=network: time_infer(network, batch, share)))
        functions = {"onnxruntime": network.onnxruntime(), "torch.compile": network.torch_compile()}
        if form == "gated" and batch == 1:
            functions["onnxruntime, skip"] = network.onnxruntime("--skip")
        with torch.no_grad():
            expected = network.net(torch.from_numpy(x))[0].numpy()
        for program, function in functions.items():
            off = abs(function(x) - expected).max()
            assert off < 1e-3 * max(1, abs(expected).max()), f"{form}, {program}: logits are off by {off}"

            def time_round(function=function, x=x):
                times = milliseconds(function, x)
                return statistics.median(times), sorted(times)[int(0.99 * len(times))]

            rows.append((form, program, time_round))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["cifar10_r110", "imagenet_r50"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--share", type=int, default=40, help="of the blocks, in per cent")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch._inductor.config.freezing = True
    print(f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, {options.rounds} rounds, ms per batch")
    print("| network | batch | form | program | ms (rounds) | p99 |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name in options.nets:
            networks = {form: Network(pathlib.Path(folder), name, form, options.share) for form in CHANGES}
            for batch in options.batch:
                torch._dynamo.reset()
                rows = programs(networks, batch, options.share)
                rounds = [[time_round() for _, _, time_round in rows] for _ in range(options.rounds)]
                for (form, program, _), times in zip(rows, zip(*rounds)):
                    p50, p99 = zip(*times)
                    tail = f"{statistics.median(p99):.2f}" if batch == 1 else ""
                    print(f"| {name} | {batch} | {form} | {program} | {statistics.median(p50):.2f} ({min(p50):.2f}–{max(p50):.2f}) | {tail} |", flush=True)


if __name__ == "__main__":
    main()
