#!/usr/bin/env python3
"""What skipping saves in onnxruntime: one image at a time, on one core, with the file of `codinet-export --format onnx`, which computes
every block, and that of `--skip`, which computes only those that run.

    tests/bench/onnx_skip.py --checkpoint runs/r50 [--config my.yaml] [--share 40 60 80] [--rounds 5] [--bin target/release]

The checkpoint's weights do not matter for the time: the last biases of its `fc` or `cnn` routers are replaced, so that the given share of
the gated blocks, drawn at random with a fixed seed, run for every image. Both files must give the same path, and logits within 1e-4.
A round times both, in turn. Run it on an idle machine. Needs: pip install onnxruntime safetensors numpy.
"""

import argparse
import pathlib
import random
import statistics
import subprocess
import tempfile
import time

import numpy
import onnxruntime
from safetensors.numpy import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGES = 16


def force(weights, share, seed):
    """Weights whose routers run this share of the gated blocks for every image, and that share as it is after rounding."""
    biases = sorted(name for name in weights if name.endswith((".router.fc2.bias", ".router.fc.bias")))
    run = set(random.Random(seed).sample(biases, round(len(biases) * share / 100)))
    forced = {name: numpy.array([0, 1e4] if name in run else [1e4, 0], "f4") for name in biases}
    return {**weights, **forced}, len(run) / len(biases)


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def milliseconds(net, images):
    """The median time of an image."""
    times = []
    for image in images:
        start = time.perf_counter()
        net.run(None, {"images": image[None]})
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--config", help="of weights outside a run directory")
    parser.add_argument("--share", type=float, nargs="+", default=[40, 60, 80])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target/release")
    options = parser.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}\n| blocks run | every block, ms | --skip, ms | ratio (each round) |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)

        def export(checkpoint, config, name, *words):
            command = [options.bin / "codinet-export", "--checkpoint", checkpoint, "--output", folder / name, *words]
            command += ["--config", config] if config else []
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return folder / name

        config = options.config or pathlib.Path(options.checkpoint) / "config.yaml"
        weights = load_file(export(options.checkpoint, options.config, "all.safetensors", "--format", "safetensors"))
        for share in options.share:
            forced, share = force(weights, share, seed=1)
            save_file(forced, folder / "forced.safetensors")
            files = [
                export(folder / "forced.safetensors", config, "masked.onnx", "--format", "onnx"),
                export(folder / "forced.safetensors", config, "skip.onnx", "--format", "onnx", "--skip"),
            ]
            masked, skip = map(session, files)
            sizes = masked.get_inputs()[0].shape[1:]
            images = numpy.random.default_rng(0).standard_normal((IMAGES, *sizes)).astype("f4")
            for image in images[:3]:
                (logits, _, path), (same_logits, _, same_path) = (net.run(None, {"images": image[None]}) for net in (masked, skip))
                assert (path == same_path).all() and abs(path.mean() - share) < 1e-6 and abs(logits - same_logits).max() < 1e-4
            rounds = [(milliseconds(masked, images), milliseconds(skip, images)) for _ in range(options.rounds)]
            all_blocks, only_run = (statistics.median(times) for times in zip(*rounds))
            each = ", ".join(f"{a / b:.2f}" for a, b in rounds)
            print(f"| {share:.0%} | {all_blocks:.2f} | {only_run:.2f} | **{all_blocks / only_run:.2f}** ({each}) |", flush=True)


if __name__ == "__main__":
    main()
