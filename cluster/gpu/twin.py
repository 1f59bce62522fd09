"""The networks of tests/bench/ddp.py on one device, as PyTorch trains them best: what check.py times codinet-train beside.

    twin.py time '{"net": "r50", "gated": true, "images": 256, "compiled": false, ...}'
    twin.py facts '{"nets": ["r50", "r101"], "device": "cuda"}'

Prints one line of JSON. PyTorch has AMP in bf16, channels_last, cudnn.benchmark, foreach SGD, and with "compiled" torch.compile
of the forward pass and the losses. Its batch lies on the device as normalised floats, the same in every step: it loads, moves and
normalises nothing, and reads no loss back.
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
# Dense bf16 TFLOP/s and GB/s, from NVIDIA's data sheets, by a part of the name that CUDA tells; the first that fits.
PEAKS = [
    ("H200", 989, 4800),
    ("H100 PCIe", 756, 2000),
    ("H100", 989, 3350),
    ("A100-SXM4-80GB", 312, 2039),
    ("A100 80GB PCIe", 312, 1935),
    ("A100", 312, 1555),
]


class Static(ddp.Net):
    """The same without routers, gates and skip branches."""

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


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def time_steps(plan):
    """Images/s of each of plan["blocks"] blocks of plan["steps"] steps."""
    case, gated, device, images = NETS[plan["net"]], plan["gated"], plan["device"], plan["images"]
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
        wait(device)
        start = time.perf_counter()
        for _ in range(plan["steps"]):
            loss = step()
        wait(device)
        speeds.append(images * plan["steps"] / (time.perf_counter() - start))
    assert math.isfinite(loss.item()), "the loss is not finite"
    memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
    return {"images_per_second": speeds, "gigabytes": memory}


def work(case, gated):
    """MACs, bytes and parameters of training on one image, at the least.

    A convolution's forward pass reads its input and writes its output; backward reads the input, the output's gradient,
    and writes the input's gradient: 3 inputs and 2 outputs of bf16, as if norms, ReLUs and gates were all part of these passes.
    The images themselves have no gradient."""
    found = []

    def count(layer, given, out):
        macs = layer.weight.numel() * (out[0, 0].numel() if out.dim() == 4 else 1)
        found.append((macs, given[0][0].numel(), out[0].numel()))

    with torch.device("meta"):
        net = network(case, gated).train()
        for layer in net.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                layer.register_forward_hook(count)
        gates = len(net.gated()) if gated else 0
        net(torch.zeros(2, case.channels, case.size, case.size), torch.zeros(2, gates))
    first, pixels, _ = found[0]
    macs = sum(macs for macs, _, _ in found)
    return {
        "macs": macs,
        "flops": 2 * (3 * macs - first),
        "bytes": 2 * (sum(3 * given + 2 * out for _, given, out in found) - pixels),
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def best(device, run, times):
    """Seconds that `run` takes at best."""
    found = []
    for _ in range(times):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        found.append(time.perf_counter() - start)
    return min(found)


def facts(plan):
    """What is known of the device, and of the networks' work."""
    device, small = plan["device"], plan["device"] == "cpu"
    n, floats = (1024, 1 << 24) if small else (8192, 1 << 29)
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    x, y = (torch.empty(floats, device=device) for _ in range(2))
    measured = {
        "tflops": 2 * n**3 / best(device, lambda: a @ b, 10) / 1e12,
        "gb_per_s": 2 * 4 * floats / best(device, lambda: y.copy_(x), 10) / 1e9,
    }
    name = "CPU" if small else torch.cuda.get_device_name()
    known = next(({"tflops": t, "gb_per_s": g} for part, t, g in PEAKS if part in name), None)
    work_of = {net: {kind: work(NETS[net], kind == "gated") for kind in ("static", "gated")} for net in plan["nets"]}
    memory = None if small else torch.cuda.get_device_properties(0).total_memory / 1e9
    return {"name": name, "gigabytes": memory, "torch": torch.__version__, "measured": measured, "peak": known, "work": work_of}


if __name__ == "__main__":
    try:
        print(json.dumps({"time": time_steps, "facts": facts}[sys.argv[1]](json.loads(sys.argv[2]))))
    except torch.OutOfMemoryError:
        print(json.dumps({"out_of_memory": True}))
