"""An independent PyTorch version of the network and the objective, and the golden numbers computed with it.

    python reference.py            writes golden.json next to this file (needs torch; any recent version)

The golden test compares the Rust program with golden.json. Nothing here is derived from the Rust code: the backbone follows
He et al. and torchvision, the gates and losses follow the paper, plainly, pair by pair. Weights, inputs and noise are sines of
their indices, so that the golden file holds only results.
"""

import contextlib
import json
import math
import pathlib

import torch
import torch.nn as nn
import torch.nn.functional as F


OPTIONS = {
    "router": "fc",  # fc, cnn or rnn
    "activation": "relu",  # after the middle layer of the fc and cnn routers; or none
    "hidden": None,  # middle width of the fc and cnn routers; None for the block's input width
    "relaxation": "gumbel",  # or straight_through
    "temperature": 1.0,
    "path_value": "decision",  # or probability: L_con and L_div compare the probabilities that blocks run
    "path_outputs": "run",  # or both: they compare both softmax outputs
    "gated": "all",  # or same_shape: blocks that change the shape always run
    "skip": "project",  # or shortcut: a skipped block that changes the shape uses its own shortcut
    "label_smoothing": 0.0,
    "target_rate": [0.0, 0.5],  # weight and rate of Conv-AIG's loss
    "run_rate": 0.0,  # weight of SkipNet's penalty
    "budget": None,  # share of the gated blocks' cost at which the penalty for a budget, of weight 10, is 0
}


ROUNDING = 0.0


def relu(x):
    return F.relu(x + ROUNDING * x.detach().std() * torch.randn_like(x) if ROUNDING else x)


@contextlib.contextmanager
def rounding():
    """In this context the inputs of each ReLU have errors of about the size of fp32's. If an input is nearer to 0 than that,
    a gradient jumps, and fp32 may differ from fp64 by as much."""
    global ROUNDING
    ROUNDING = 5e-7
    yield
    ROUNDING = 0.0


class FcRouter(nn.Module):
    def __init__(self, cin, hidden, activate):
        super().__init__()
        self.fc1 = nn.Linear(cin, hidden)
        self.fc2 = nn.Linear(hidden, 2)
        self.activate = activate

    def forward(self, x):
        return self.fc2(self.activate(self.fc1(x.mean((2, 3)))))


class CnnRouter(nn.Module):
    def __init__(self, cin, hidden, activate):
        super().__init__()
        self.conv = nn.Conv2d(cin, hidden, 3, 1, 1)
        self.fc = nn.Linear(hidden, 2)
        self.activate = activate

    def forward(self, x):
        return self.fc(self.activate(self.conv(x)).mean((2, 3)))


class RnnRouter(nn.Module):
    """One router for the whole network; its state passes from gated block to gated block."""

    def __init__(self, widths):
        super().__init__()
        for c in widths:
            setattr(self, f"input{c}", nn.Linear(c, 10))
        self.lstm = nn.LSTMCell(10, 10)
        self.fc = nn.Linear(10, 2)

    def forward(self, x, state):
        h, c = self.lstm(getattr(self, f"input{x.shape[1]}")(x.mean((2, 3))), state)
        return self.fc(h), (h, c)


class Block(nn.Module):
    """Basic or bottleneck block with its router, if it has one; attribute names are torchvision's."""

    def __init__(self, cin, width, stride, kind, stride_in, option):
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
        self.convs = len(plan)
        self.stride = stride
        self.extra = cout - cin
        self.option_a = kind == "small"
        self.reshapes = stride != 1 or cin != cout
        self.downsample = self.router = self.skip = None
        if not self.option_a and self.reshapes:
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))
        self.cin = cin
        self.gated = option["gated"] == "all" or not self.reshapes
        if self.gated and option["router"] != "rnn":
            router = {"fc": FcRouter, "cnn": CnnRouter}[option["router"]]
            activate = {"relu": relu, "none": lambda x: x}[option["activation"]]
            self.router = router(cin, option["hidden"] or cin, activate)
        if self.gated and self.reshapes and option["skip"] == "project":
            self.skip = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x, v):
        """v: the decision of each input, or None if the block always runs."""
        y = x
        for i in range(1, self.convs + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = relu(y) if i < self.convs else y
        if self.option_a and self.extra:
            short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        else:
            short = self.downsample(x) if self.downsample is not None else x
        ran = relu(y + short)
        if v is None:
            return ran
        skipped = x
        if self.reshapes:
            skipped = relu(self.skip(x) if self.skip is not None else short)
        w = v[:, None, None, None]
        return w * ran + (1 - w) * skipped


class Net(nn.Module):
    def __init__(self, kind, depths, stride_in, channels, classes, option):
        super().__init__()
        self.option = option
        small = kind == "small"
        width = 16 if small else 64
        self.conv1 = nn.Conv2d(channels, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        cin = width
        for s, depth in enumerate(depths):
            blocks = []
            for b in range(depth):
                block = Block(cin, width << s, 2 if s > 0 and b == 0 else 1, kind, stride_in, option)
                cin = (width << s) * (4 if kind == "bottleneck" else 1)
                blocks.append(block)
            setattr(self, f"layer{s + 1}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.router = RnnRouter(sorted({block.cin for block in self.gated()})) if option["router"] == "rnn" else None
        self.fc = nn.Linear(cin, classes)

    def blocks(self):
        return [block for s in range(self.stages) for block in getattr(self, f"layer{s + 1}")]

    def gated(self):
        return [block for block in self.blocks() if block.gated]

    def decide(self, logit, noise):
        """noise g1 - g0, or None for a hard decision."""
        if noise is None:
            return (logit >= 0).to(logit.dtype)
        s = torch.sigmoid((logit + noise) / self.option["temperature"])
        if self.option["relaxation"] == "straight_through":
            return (s >= 0.5).to(s.dtype) + (s - s.detach())
        return s

    def forward(self, x, noise):
        """Returns output, logits (u1 - u0) and decisions of the gated blocks."""
        x = self.pool(relu(self.bn1(self.conv1(x))))
        state = None
        logits = []
        path = []
        for block in self.blocks():
            v = None
            if block.gated:
                if self.router is not None:
                    u, state = self.router(x, state)
                else:
                    u = block.router(x)
                logit = u[:, 1] - u[:, 0]
                v = self.decide(logit, noise[:, len(path)] if noise is not None else None)
                logits.append(logit)
                path.append(v)
            x = block(x, v)
        return self.fc(x.mean((2, 3))), torch.stack(logits, 1), torch.stack(path, 1)


def wave(n, k):
    """The n values of tensor k: sin(12.9898 j + 78.233 k)."""
    return torch.sin(12.9898 * torch.arange(n, dtype=torch.float64) + 78.233 * k)


def fill(net):
    gain = 0.5 if len(net.blocks()) < 10 else 0.2  # deep networks must not grow
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
            w = gain * (1 + 0.4 * w)
        else:
            w = 0.1 * w
        t.copy_(w)


def costs(net, size, channels):
    """FLOPs of each gated block and its shortcut, counted by hooks in a real forward pass, divided by their mean."""
    counted = []
    for block in net.gated():
        total = []

        def count(conv, _, out, total=total):
            total.append(out.shape[2] * out.shape[3] * conv.weight.numel())

        convs = [getattr(block, f"conv{i}") for i in range(1, block.convs + 1)]
        convs += [block.downsample[0]] if block.downsample is not None else []
        counted.append((total, [conv.register_forward_hook(count) for conv in convs]))
    net.eval()
    net(torch.zeros(1, channels, size, size), None)
    for _, hooks in counted:
        for hook in hooks:
            hook.remove()
    flops = torch.tensor([float(sum(total)) for total, _ in counted])
    return flops / flops.mean()


def path_vectors(gates, path, option):
    """r of Eqs. 8 and 9, from the softmax over each gate's two outputs U."""
    outputs = torch.stack([path, 1 - path], 2)
    if option["path_value"] == "probability":
        outputs = torch.stack([gates, torch.zeros_like(gates)], 2).softmax(2)
    return outputs[:, :, 0] if option["path_outputs"] == "run" else outputs.flatten(1)


def losses(vectors, path, cost, views, m_c, m_d):
    """Eqs. 8, 9 and 11 as in the paper: sums over samples, views and pairs."""
    groups = vectors.split(views)
    centres = [g.mean(0) for g in groups]
    con = sum(F.relu((r - c).norm() - m_c) ** 2 for g, c in zip(groups, centres) for r in g) / len(path)
    n = len(centres)
    div = sum(F.relu(m_d - (centres[i] - centres[j]).norm()) ** 2 for i in range(n) for j in range(n) if i != j)
    return con, div / (n * (n - 1)), sum((r * cost).sum() for r in path) / len(path)


def gradients(net):
    """Norm of each gradient, and its product with wave 0."""
    grads = {}
    for key, p in net.named_parameters():
        g = p.grad.double().flatten()
        grads[key] = [g.norm().item(), (g * wave(g.numel(), 0)).sum().item(), 0.0]
    return grads


def case(label, name, kind, depths, stride_in, channels, size, classes, batch_statistics, samples=3, views=2, **options):
    """A case with few small images. Deep networks use running statistics."""
    option = {**OPTIONS, **options}
    assert set(option) == set(OPTIONS), options
    torch.manual_seed(0)
    net = Net(kind, depths, stride_in, channels, classes, option)
    with torch.no_grad():
        fill(net)
        cost = costs(net, size, channels)
    n = samples * views
    gated = len(net.gated())
    x = torch.sin(0.7 * torch.arange(n * channels * size * size, dtype=torch.float64) + 2).view(n, channels, size, size)
    x = x * (0.8 + 0.15 * torch.arange(n)).view(n, 1, 1, 1)  # bright and dark images, which take different paths
    noise = (2 * torch.sin(1.3 * torch.arange(n * gated, dtype=torch.float64))).view(n, gated)
    labels = torch.arange(samples) % classes
    net.eval()
    with torch.no_grad():
        hard_logits, hard_gates, hard_path = net(x, None)
    net.train(batch_statistics)
    margin = 0.5 * math.sqrt(gated)

    def backward():
        """Computes all terms of the loss, and the gradients of the parameters."""
        logits, gates, path = net(x, noise)
        ce = F.cross_entropy(logits, labels.repeat_interleave(views), label_smoothing=option["label_smoothing"])
        con, div, c = losses(path_vectors(gates, path, option), path, cost, views, 0.1, margin)
        weight, rate = option["target_rate"]
        target = ((path.mean(0) - rate) ** 2).sum()
        run = path.mean()
        total = ce + 0.7 * con + 0.9 * div + 0.02 * c + weight * target + option["run_rate"] * run
        if option["budget"] is not None:
            total = total + 10 * ((path @ cost).mean() / gated - option["budget"]) ** 2
        net.zero_grad()
        total.backward()
        return logits, gates, path, total, ce, con, div, c, target, run

    logits, gates, path, total, ce, con, div, c, target, run = backward()
    grads = gradients(net)
    for _ in range(8):
        with rounding():
            backward()
        for key, near in gradients(net).items():
            grads[key][2] = max([grads[key][2]] + [abs(a - b) for a, b in zip(near[:2], grads[key])])
    smallest = hard_gates.abs().min().item()
    smallest_noisy = (gates + noise).abs().min().item()
    print(f"{label}: smallest |logit| {smallest:.2g}, with noise {smallest_noisy:.2g}, hard run rate {hard_path.mean():.2f}")
    assert smallest > 1e-4, "a hard decision is too close to 0"
    assert option["relaxation"] != "straight_through" or smallest_noisy > 1e-3, "a noisy decision is too close to 0"
    return {
        "case": label, "name": name, "channels": channels, "size": size, "classes": classes, "samples": samples,
        "views": views, "stride_in": stride_in, "batch_statistics": batch_statistics, **option,
        "logits": logits.tolist(), "gates": gates.tolist(), "path": path.tolist(),
        "hard_logits": hard_logits.tolist(), "hard_path": hard_path.tolist(),
        "margin": margin, "ce": ce.item(), "con": con.item(), "div": div.item(), "cost": c.item(),
        "target": target.item(), "run": run.item(), "loss": total.item(), "grads": grads,
    }


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    resnet20 = ("resnet20", "small", [3, 3, 3], "conv2", 1, 16, 10, True, 4)
    resnet18 = ("resnet18", "basic", [2, 2, 2, 2], "conv2", 3, 64, 12, False)
    cases = [
        case("resnet20", *resnet20),
        case("resnet110", "resnet110", "small", [18, 18, 18], "conv2", 3, 32, 10, False),
        case("resnet18", *resnet18),
        case("resnet50", "resnet50", "bottleneck", [3, 4, 6, 3], "conv1", 3, 64, 12, False),
        case("resnet101", "resnet101", "bottleneck", [3, 4, 23, 3], "conv2", 3, 64, 12, False),
        case("cnn router", *resnet20, router="cnn", hidden=6, temperature=0.5),
        case("rnn router", *resnet20, router="rnn", label_smoothing=0.1),
        case("straight through", *resnet20, relaxation="straight_through", target_rate=[0.5, 0.6], run_rate=0.3),
        case("same shape", *resnet20, gated="same_shape", hidden=6),
        case("shortcut of resnet18", *resnet18, skip="shortcut"),
        case("shortcut of resnet20", *resnet20, skip="shortcut"),
        case("both outputs", *resnet20, router="cnn", hidden=6, activation="none", path_outputs="both", target_rate=[0.5, 0.6]),
        case("probabilities of hard gates", *resnet20, relaxation="straight_through", temperature=0.5, activation="none",
             path_value="probability", path_outputs="both", target_rate=[0.5, 0.6]),
        case("budget", *resnet20, budget=0.4),
    ]
    rounded = json.loads(json.dumps({"torch": torch.__version__, "cases": cases}), parse_float=lambda s: float(f"{float(s):.8g}"))
    pathlib.Path(__file__).with_name("golden.json").write_text(json.dumps(rounded))
