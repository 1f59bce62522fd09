"""Counts what a training step asks of a GPU: operations, copies, allocations, and how often the host waits."""

import collections
import re

# The update ends a step; it takes a call for each part of the weights with settings of its own.
UPDATE = "operation aten::_fused_sgd_"
# Two updates that are so many calls apart are those of different steps.
GAP = 30
# From the update of step 4 to that of step 7: the first steps allocate memory, and the last one uploads no next batch.
FIRST, LAST = 3, 6

KINDS = [
    ("operations", r"operation "),
    ("own kernels", r"own kernel "),
    ("copies to the GPU", r"copy, \w+ to device"),
    ("copies to the host", r"copy, device to (pinned|pageable)"),
    ("host waits", r"wait: "),
    ("allocations", r"cudaMalloc|cudaHostAlloc"),
    ("events recorded", r"cudaEventRecord"),
    ("stream waits", r"cudaStreamWaitEvent"),
]


def step_starts(calls):
    updates = [at for at, call in enumerate(calls) if call.startswith(UPDATE)]
    return [at for before, at in zip([-GAP - 1, *updates], updates) if at - before > GAP]


def per_step(calls):
    """The mean of each kind over three steps."""
    starts = step_starts(calls)
    counts = collections.Counter()
    for call in calls[starts[FIRST] : starts[LAST]]:
        counts.update(name for name, pattern in KINDS if re.match(pattern, call))
    return {name: round(counts[name] / (LAST - FIRST), 1) for name, _ in KINDS}
