"""An independent PyTorch version of the network and the objective, and the golden numbers it gives.

    python reference.py            writes golden.json beside this file (needs torch; any recent version)

tests/golden.rs holds the Rust program against golden.json. Nothing here is derived from the Rust code: the backbone
is written after He et al. and torchvision, the gates and losses after the paper, plainly, pair by pair. Weights,
inputs and noise are sines of their indices, so that the golden file holds results only.
"""

import json
import math
import pathlib

import torch
import torch.nn as nn
import torch.nn.functional as F


class Gate(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.router = nn.Module()
        self.router.fc1 = nn.Linear(cin, cin)
        self.router.fc2 = nn.Linear(cin, 2)
        self.skip = None
        if stride != 1 or cin != cout:
            self.skip = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))


class Block(nn.Module):
    """Basic or bottleneck block with a router; attribute names are torchvision's."""

    def __init__(self, cin, width, stride, kind, stride_in):
        super().__init__()
        if kind == "bottleneck":
            cout = 4 * width
            s1, s2 = (stride, 1) if stride_in == "conv1" else (1, stride)
            plan = [(cin, width, 1, s1), (width, width, 3, s2), (width, cout, 1, 1)]
        else:
            cout = width
            plan = [(cin, width, 3, stride), (width, width, 3, 1)]
        for i, (a, b, k, s) in enumerate(plan, 1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, k, s, k // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.convs, self.stride, self.extra = len(plan), stride, cout - cin
        self.option_a = kind == "small"
        self.downsample = None
        if not self.option_a and (stride != 1 or cin != cout):
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))
        gate = Gate(cin, cout, stride)
        self.router, self.skip = gate.router, gate.skip

    def run(self, x):
        y = x
        for i in range(1, self.convs + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.convs else y
        if self.option_a and self.extra:
            short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        else:
            short = self.downsample(x) if self.downsample is not None else x
        return F.relu(y + short)

    def forward(self, x, noise):
        """noise g1 - g0, or None for a hard decision; returns output, logit and decision."""
        u = self.router.fc2(F.relu(self.router.fc1(x.mean((2, 3)))))
        logit = u[:, 1] - u[:, 0]
        v = torch.sigmoid(logit + noise) if noise is not None else (u[:, 1] >= u[:, 0]).to(x.dtype)
        around = F.relu(self.skip(x)) if self.skip is not None else x
        w = v[:, None, None, None]
        return w * self.run(x) + (1 - w) * around, logit, v


class Net(nn.Module):
    def __init__(self, kind, depths, stride_in, channels, classes):
        super().__init__()
        small = kind == "small"
        width = 16 if small else 64
        self.conv1 = nn.Conv2d(channels, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        cin = width
        self.stages = len(depths)
        for s, depth in enumerate(depths):
            blocks = []
            for b in range(depth):
                block = Block(cin, width << s, 2 if s > 0 and b == 0 else 1, kind, stride_in)
                cin = (width << s) * (4 if kind == "bottleneck" else 1)
                blocks.append(block)
            setattr(self, f"layer{s + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(cin, classes)

    def forward(self, x, noise):
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        logits, path = [], []
        for s in range(self.stages):
            for block in getattr(self, f"layer{s + 1}"):
                x, logit, v = block(x, noise[:, len(path)] if noise is not None else None)
                logits.append(logit)
                path.append(v)
        return self.fc(x.mean((2, 3))), torch.stack(logits, 1), torch.stack(path, 1)


def wave(n, k):
    """The n values of tensor k: sin(12.9898 j + 78.233 k)."""
    return torch.sin(12.9898 * torch.arange(n, dtype=torch.float64) + 78.233 * k)


def fill(net):
    tensors = {n: t for n, t in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    for k, name in enumerate(sorted(tensors)):
        t = tensors[name]
        w = wave(t.numel(), k).reshape(t.shape)
        if t.dim() == 4:
            w = w * (2 / math.sqrt(t.shape[0] * t.shape[2] * t.shape[3]))
        elif t.dim() == 2:
            w = w * (1.7 / math.sqrt(t.shape[1]))
        elif name.endswith("running_var"):
            w = 1 + 0.5 * w
        elif name.endswith("weight"):
            w = 0.5 + 0.2 * w
        else:
            w = 0.1 * w
        t.copy_(w)


def costs(net, size, channels):
    """FLOPs of each block, its shortcut included, by hooks on a real forward pass; in units of their mean."""
    found = []
    for s in range(net.stages):
        for block in getattr(net, f"layer{s + 1}"):
            total = []

            def count(conv, _, out, total=total):
                total.append(out.shape[2] * out.shape[3] * conv.weight.numel())

            convs = [getattr(block, f"conv{i}") for i in range(1, block.convs + 1)]
            convs += [block.downsample[0]] if block.downsample is not None else []
            found.append((total, [conv.register_forward_hook(count) for conv in convs]))
    net.eval()
    net(torch.zeros(1, channels, size, size), None)
    for _, hooks in found:
        for hook in hooks:
            hook.remove()
    flops = torch.tensor([float(sum(total)) for total, _ in found])
    return flops / flops.mean()


def losses(path, cost, views, m_c, m_d):
    """Eqs. 8, 9 and 11, written as they stand: sums over samples, views and pairs."""
    groups = path.split(views)
    centres = [g.mean(0) for g in groups]
    con = sum(F.relu((r - c).norm() - m_c) ** 2 for g, c in zip(groups, centres) for r in g) / len(path)
    n = len(centres)
    div = sum(F.relu(m_d - (centres[i] - centres[j]).norm()) ** 2 for i in range(n) for j in range(n) if i != j)
    return con, div / (n * (n - 1)), sum((r * cost).sum() for r in path) / len(path)


def case(name, kind, depths, stride_in, channels, size, classes, batch_statistics, samples=3, views=2):
    """Batch norm takes the batch's statistics where that is well conditioned. On the deep networks, with so few
    images, gradients in fp32 are off by over 1 % from those in fp64, in PyTorch as anywhere."""
    torch.manual_seed(0)
    net = Net(kind, depths, stride_in, channels, classes)
    with torch.no_grad():
        fill(net)
        cost = costs(net, size, channels)
    n, blocks = samples * views, sum(depths)
    x = torch.sin(0.7 * torch.arange(n * channels * size * size, dtype=torch.float64)).view(n, channels, size, size)
    noise = (2 * torch.sin(1.3 * torch.arange(n * blocks, dtype=torch.float64))).view(n, blocks)
    labels = torch.arange(samples) % classes
    net.eval()
    with torch.no_grad():
        hard_logits, _, hard_path = net(x, None)
    net.train(batch_statistics)
    logits, gates, path = net(x, noise)
    ce = F.cross_entropy(logits, labels.repeat_interleave(views))
    con, div, c = losses(path, cost, views, 0.1, 1.5)
    (ce + 0.7 * con + 0.9 * div + 0.02 * c).backward()
    grads = {}
    for key, p in net.named_parameters():
        g = p.grad.double().flatten()
        grads[key] = [g.norm().item(), (g * wave(g.numel(), 0)).sum().item()]
    return {
        "name": name, "channels": channels, "size": size, "classes": classes, "samples": samples, "views": views,
        "stride_in": stride_in, "batch_statistics": batch_statistics,
        "logits": logits.tolist(), "gates": gates.tolist(), "path": path.tolist(),
        "hard_logits": hard_logits.tolist(), "hard_path": hard_path.tolist(),
        "ce": ce.item(), "con": con.item(), "div": div.item(), "cost": c.item(), "grads": grads,
    }


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    cases = [
        case("resnet20", "small", [3, 3, 3], "conv2", 1, 28, 10, True, samples=8),
        case("resnet110", "small", [18, 18, 18], "conv2", 3, 32, 10, False),
        case("resnet18", "basic", [2, 2, 2, 2], "conv2", 3, 64, 12, False),
        case("resnet50", "bottleneck", [3, 4, 6, 3], "conv1", 3, 64, 12, False),
        case("resnet101", "bottleneck", [3, 4, 23, 3], "conv2", 3, 64, 12, False),
    ]
    rounded = json.loads(json.dumps({"torch": torch.__version__, "cases": cases}), parse_float=lambda s: float(f"{float(s):.8g}"))
    pathlib.Path(__file__).with_name("golden.json").write_text(json.dumps(rounded))
