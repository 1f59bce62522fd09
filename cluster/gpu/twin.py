"""The networks of tests/bench/ddp.py on one device in PyTorch at its fastest: the reference for check.py's timings.

    twin.py time '{"net": "r50", "gated": true, "images": 256, "compiled": false, ...}'
    twin.py facts '{"nets": ["r50", "r101"], "device": "cuda", "small": false}'

Prints one line of JSON. PyTorch has AMP in bf16, channels_last, cudnn.benchmark, foreach SGD, and with "compiled" torch.compile
of the forward pass and the losses. Its batch is on the device as normalised floats, the same in every step. It does not load, copy
or normalise, and does not read the loss back.
"""

import dataclasses
import json
import math
import pathlib
import sys
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/bench"))
import ddp  # noqa: E402

R50 = ddp.CASES["imagenet_r50"]
NETS = {"r20": ddp.CASES["fashion_r20"], "r50": R50, "r101": dataclasses.replace(R50, depths=[3, 4, 23, 3])}
# Dense bf16 TFLOP/s and GB/s, from NVIDIA's data sheets, by a part of CUDA's device name; the first match counts.
PEAKS = [
    ("H200", 989, 4800),
    ("H100 PCIe", 756, 2000),
    ("H100", 989, 3350),
    ("A100-SXM4-80GB", 312, 2039),
    ("A100 80GB PCIe", 312, 1935),
    ("A100", 312, 1555),
]


class Static(ddp.Net):
    """The same network without routers, gates and skip branches."""

    def __init__(self, *args):
        super().__init__(*args)
        for block in self.blocks():
            block.router = block.skip = None

    def forward(self, x, noise):
        x = self.pool(F.relu_(self.bn1(self.conv1(x))))
        for block in self.blocks():
            x = self.run(block, x)
        return self.fc(x.mean((2, 3)))


def network(case, gated):
    option = {**ddp.reference.OPTIONS, "hidden": case.hidden}
    return (ddp.Net if gated else Static)(case.kind, case.depths, case.stride_in, case.channels, case.classes, option)


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def time_steps(plan):
    """Images/s of each of plan["blocks"] blocks of plan["steps"] steps."""
    case = NETS[plan["net"]]
    gated = plan["gated"]
    device = plan["device"]
    images = plan["images"]
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if device == "cpu":
        torch.set_num_threads(plan["threads"])
    net = network(case, gated)
    gates = len(net.gated()) if gated else 0
    cost = ddp.reference.costs(net, case.size, case.channels).to(device) if gated else None
    net = net.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(net.parameters(), case.lr, case.momentum, weight_decay=case.weight_decay, foreach=True)
    x = torch.randn(images, case.channels, case.size, case.size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(case.classes, (images // case.views,), device=device).repeat_interleave(case.views)

    def loss_of(x, labels, noise):
        with torch.autocast(device, torch.bfloat16, enabled=plan["dtype"] == "bf16"):
            out = net(x, noise)
        if not gated:
            return F.cross_entropy(out.float(), labels)
        logits, _, path = out
        keys = path.detach().view(-1, case.views, gates).mean(1)
        con, div, price = ddp.losses(path, keys, 0, cost, case.views, case.m_c, case.m_d)
        return F.cross_entropy(logits.float(), labels) + case.alpha * con + case.beta * div + case.gamma * price

    if plan["compiled"]:
        loss_of = torch.compile(loss_of)

    def step():
        noise = torch.rand(images, gates, device=device).clamp_(1e-6, 1 - 1e-6).logit_() if gated else None
        optimiser.zero_grad(set_to_none=True)
        loss = loss_of(x, labels, noise)
        loss.backward()
        optimiser.step()
        return loss

    for _ in range(plan["warm_up"]):
        loss = step()
    speeds = []
    for _ in range(plan["blocks"]):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(plan["steps"]):
            loss = step()
        synchronize(device)
        speeds.append(images * plan["steps"] / (time.perf_counter() - start))
    assert math.isfinite(loss.item()), "the loss is not finite"
    memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
    return {"images_per_second": speeds, "gigabytes": memory}


def count_work(case, gated):
    """Lower bounds of the MACs, bytes and parameters of training on one image.

    A convolution's forward pass reads its input and writes its output. Backward reads the input and the output's gradient,
    and writes the input's gradient: 3 inputs and 2 outputs of bf16, as if norms, ReLUs and gates were fused into these passes.
    The images themselves have no gradient."""
    layers = []

    def count(layer, inputs, out):
        macs = layer.weight.numel() * (out[0, 0].numel() if out.dim() == 4 else 1)
        layers.append((macs, inputs[0][0].numel(), out[0].numel()))

    with torch.device("meta"):
        net = network(case, gated).train()
        for layer in net.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                layer.register_forward_hook(count)
        gates = len(net.gated()) if gated else 0
        net(torch.zeros(2, case.channels, case.size, case.size), torch.zeros(2, gates))
    first, pixels, _ = layers[0]
    macs = sum(macs for macs, _, _ in layers)
    return {
        "macs": macs,
        "flops": 2 * (3 * macs - first),
        "bytes": 2 * (sum(3 * read + 2 * out for _, read, out in layers) - pixels),
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def fastest(device, run, times):
    """The shortest of `times` durations of `run`, in seconds."""
    durations = []
    for _ in range(times):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        durations.append(time.perf_counter() - start)
    return min(durations)


def facts(plan):
    """Name, memory and peaks of the device, and the work of the networks."""
    device = plan["device"]
    n, floats = (1024, 1 << 24) if plan["small"] else (8192, 1 << 29)
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    x, y = (torch.empty(floats, device=device) for _ in range(2))
    measured = {
        "tflops": 2 * n**3 / fastest(device, lambda: a @ b, 10) / 1e12,
        "gb_per_s": 2 * 4 * floats / fastest(device, lambda: y.copy_(x), 10) / 1e9,
    }
    name = "CPU" if device == "cpu" else torch.cuda.get_device_name()
    known = next(({"tflops": t, "gb_per_s": g} for part, t, g in PEAKS if part in name), None)
    work_of = {net: {kind: count_work(NETS[net], kind == "gated") for kind in ("static", "gated")} for net in plan["nets"]}
    memory = None if device == "cpu" else torch.cuda.get_device_properties(0).total_memory / 1e9
    return {"name": name, "gigabytes": memory, "torch": torch.__version__, "measured": measured, "peak": known, "work": work_of}


if __name__ == "__main__":
    try:
        print(json.dumps({"time": time_steps, "facts": facts}[sys.argv[1]](json.loads(sys.argv[2]))))
    except torch.OutOfMemoryError:
        print(json.dumps({"out_of_memory": True}))
