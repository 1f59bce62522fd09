"""What a training step asks of a GPU today. A change that lowers a number is welcome: change it here with the code. Each is a mean
over three steps of the case of that name (cases.py)."""


def step(**numbers):
    """Counts of a step, with those that all cases have today."""
    same = {"copies to the GPU": 3, "copies to the host": 2, "host waits": 0, "allocations": 0}
    return {**same, **{name.replace("_", " "): number for name, number in numbers.items()}}


# A forward pass of codinet-infer, the mean of a static and a dynamic one.
PER_PASS = {"host waits": 1, "operations": 105.5}

PER_STEP = {
    "counts-fp32": step(operations=598, own_kernels=0, events_recorded=26, stream_waits=11),
    "counts-bf16": step(operations=665, own_kernels=0, events_recorded=26, stream_waits=11),
    "counts-kernels": step(operations=395, own_kernels=136, events_recorded=26, stream_waits=11),
    "counts-resnet50": step(operations=1130, own_kernels=0, events_recorded=35, stream_waits=17),
}
