"""What the cases' numbers have to agree with: each other's, and those of a CPU."""

import json


def metrics(runs, name, kind):
    lines = (json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def evaluations(runs, name):
    """The evaluations without times."""
    return [{key: value for key, value in line.items() if key not in ("time", "seconds")} for line in metrics(runs, name, "eval")]


def equal_bits(runs, name, other):
    """None if the evaluations that both runs have are bit-identical, else what differs."""
    ours = evaluations(runs, name)
    theirs = evaluations(runs, other)[-len(ours) :]
    if ours and ours == theirs:
        return None
    return f"evaluations of {name} and {other} differ"


def losses(runs, name):
    return [line["loss"] for line in metrics(runs, name, "train")]


def within_cpu_spread(runs, gpu, cpu, other_cpu, factor=10.0, rounding=1e-5):
    """Whether a GPU's losses are about as near to those of one CPU thread as two threads' are: step by step at most `factor` times
    the largest relative difference of the two until then, plus `rounding`. Returns a message, and whether it holds."""
    spread = 0.0
    worst = 0.0
    largest = 0.0
    for ours, one, two in zip(losses(runs, gpu), losses(runs, cpu), losses(runs, other_cpu), strict=True):
        spread = max(spread, abs(one - two) / abs(one))
        difference = abs(ours - one) / abs(one)
        largest = max(largest, difference)
        worst = max(worst, difference / (factor * spread + rounding))
    return f"losses differ by up to {largest:.1e}, two CPU thread counts by {spread:.1e}", worst <= 1


def equal_predictions(folder, name, other):
    """A message, and whether classes, paths and MACs in NAME.jsonl are those of the other case."""
    keys = ("image", "class", "path", "macs")
    ours, theirs = ([[json.loads(line)[key] for key in keys] for line in open(folder / f"{case}.jsonl")] for case in (name, other))
    different = sum(a != b for a, b in zip(ours, theirs, strict=True))
    return f"{different} of {len(ours)} images differ from {other}", different == 0 and len(ours) > 0
