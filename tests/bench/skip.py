#!/usr/bin/env python3
"""Images/s of training that computes only the branch that each image takes (stages.N.skip: real), against the same
training with both branches computed (masked), at the same rates. Gates are random (model.routing: {random: RATE}), so each image's
path is independent of all others'.

    tests/bench/skip.py --rounds 3

Run it in the repository's root on an otherwise idle machine, after `make quickstart` (it trains on Fashion-MNIST, scaled to
the network's image size). One rank with one thread. Each program runs once per round, and each round starts with another
one. Images/s are those of the steps after the warm-up, from metrics.jsonl.
"""

import argparse
import collections
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

# Settings; steps of warm-up, steps measured.
NETWORKS = {
    "resnet110": (["model.arch=resnet110", "optim.batch_size=64"], 2, 4),
    "resnet50": (["model.arch=resnet50", "data.image_size=224", "data.eval_resize=224", "data.crop={random_resized: {scale: [0.5, 1.0], ratio: [0.75, 1.3333333]}}", "data.views=1", "optim.batch_size=64"], 1, 2),
}


def steps(path):
    """The complete training lines of a metrics.jsonl."""
    text = path.read_text() if path.exists() else ""
    complete = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in complete if line["kind"] == "train"]


def images_per_second(options, network, rate, skip):
    """Images/s, and GMACs an image as measured."""
    settings, warm_up, measured = NETWORKS[network]
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        settings = settings + [f"model.routing={{random: {rate}}}", f"stages.0.skip={skip}"]
        settings += [f"run={{dir: {run}, threads: 1, device: cpu, log_every: 1, precision: {options.precision}}}"]
        command = [options.codinet_train, "fashion_r20.yaml", *(part for setting in settings for part in ("--set", setting))]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while len(steps(run / "metrics.jsonl")) < warm_up + measured:
                if process.poll() is not None:
                    sys.exit(f"skip.py: codinet-train ended early:\n{process.stderr.read()}")
                time.sleep(0.1)
            process.terminate()
            process.communicate()
        lines = steps(run / "metrics.jsonl")[warm_up : warm_up + measured]
    return statistics.harmonic_mean([line["images_per_second"] for line in lines]), statistics.mean(line["gmacs"] for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rates", nargs="+", type=float, default=[0.6, 0.4])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--codinet-train", default="target/release/codinet-train")
    options = parser.parse_args()
    speeds = collections.defaultdict(list)
    gmacs = collections.defaultdict(list)
    cases = [(network, rate, skip) for network in options.networks for rate in options.rates for skip in ("masked", "real")]
    for turn in range(options.rounds):
        first = turn % len(cases)
        for case in cases[first:] + cases[:first]:
            speed, cost = images_per_second(options, *case)
            speeds[case].append(speed)
            gmacs[case].append(cost)
            print(f"round {turn + 1}", *case, f"{speed:.2f} images/s at {cost:.4f} GMACs", file=sys.stderr, flush=True)
    print("| network | blocks run | GMACs | masked, images/s | real, images/s | ratio | each round |")
    print("|---" * 7 + "|")
    for network in options.networks:
        for rate in options.rates:
            masked, real = (speeds[network, rate, skip] for skip in ("masked", "real"))
            ratios = [b / a for a, b in zip(masked, real)]
            cells = [network, f"{rate:.0%}", f"{statistics.mean(gmacs[network, rate, 'real']):.4f}"]
            cells += [f"{statistics.median(speed):.2f} ({min(speed):.2f} to {max(speed):.2f})" for speed in (masked, real)]
            cells += [f"**{statistics.median(real) / statistics.median(masked):.2f}**", " ".join(f"{ratio:.2f}" for ratio in ratios)]
            print("| " + " | ".join(cells) + " |")
    print(f"\nimages/s: median of {options.rounds} rounds (min to max), {options.precision}, one thread.")


if __name__ == "__main__":
    main()
