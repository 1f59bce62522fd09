"""The network: the backbone, its routers, and what a trained one computes."""

from os import PathLike
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

# Kind of block, and number of blocks per stage.
PLANS = {
    "resnet20": ("small", [3] * 3), "resnet32": ("small", [5] * 3), "resnet44": ("small", [7] * 3),
    "resnet56": ("small", [9] * 3), "resnet74": ("small", [12] * 3), "resnet110": ("small", [18] * 3),
    "resnet18": ("basic", [2, 2, 2, 2]), "resnet34": ("basic", [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]), "resnet101": ("bottleneck", [3, 4, 23, 3]),
    "resnet152": ("bottleneck", [3, 8, 36, 3]),
}  # fmt: skip


class FcRouter(nn.Module):
    """Mean over H and W, linear, ReLU unless the network has none, linear (Eqs. 3 and 4)."""

    def __init__(self, tensors, prefix, activate):
        super().__init__()
        self.activate = activate
        hidden, cin = tensors[f"{prefix}.fc1.weight"].shape
        self.fc1 = nn.Linear(cin, hidden)
        self.fc2 = nn.Linear(hidden, 2)

    def forward(self, x):
        return self.fc2(self.activate(self.fc1(x.mean((2, 3)))))


class CnnRouter(nn.Module):
    def __init__(self, tensors, prefix, activate):
        super().__init__()
        self.activate = activate
        hidden, cin = tensors[f"{prefix}.conv.weight"].shape[:2]
        self.conv = nn.Conv2d(cin, hidden, 3, padding=1)
        self.fc = nn.Linear(hidden, 2)

    def forward(self, x):
        return self.fc(self.activate(self.conv(x)).mean((2, 3)))


class RnnRouter(nn.Module):
    """One router for all blocks; its state passes from block to block."""

    def __init__(self, widths):
        super().__init__()
        for width in widths:
            setattr(self, f"input{width}", nn.Linear(width, 10))
        self.lstm = nn.LSTMCell(10, 10)
        self.fc = nn.Linear(10, 2)

    def forward(self, x, state):
        h, c = self.lstm(getattr(self, f"input{x.shape[1]}")(x.mean((2, 3))), state)
        return self.fc(h), (h, c)


class Block(nn.Module):
    def __init__(self, kind, cin, width, stride, meta, tensors, prefix):
        super().__init__()
        cout = 4 * width if kind == "bottleneck" else width
        if kind == "bottleneck":
            first, second = (stride, 1) if meta["stride_in"] == "conv1" else (1, stride)
            plan = [(cin, width, 1, first), (width, width, 3, second), (width, cout, 1, 1)]
        else:
            plan = [(cin, width, 3, stride), (width, width, 3, 1)]
        if f"{prefix}.conv1.weight" not in tensors:
            plan = []  # a fixed path without this block
        for i, (a, b, k, s) in enumerate(plan, 1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, k, s, k // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.convolutions = len(plan)
        self.stride = stride
        self.added_channels = cout - cin
        self.reshapes = stride != 1 or cin != cout

        def project():
            return nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

        self.downsample = project() if self.reshapes and f"{prefix}.downsample.0.weight" in tensors else None
        has_gate = meta["gates"] == "all" or meta["gates"] == "same_shape" and not self.reshapes
        self.gated = has_gate and meta.get("routing", "routers") == "routers"
        skips = self.gated or not plan
        self.skip = project() if skips and self.reshapes and meta["skip"] == "project" else None
        routers = {"fc": FcRouter, "cnn": CnnRouter}
        has_router = self.gated and meta["router"] in routers
        activate = nn.Identity() if meta.get("activation") == "none" else nn.ReLU()
        self.router = routers[meta["router"]](tensors, f"{prefix}.router", activate) if has_router else None

    def shortcut(self, x):
        if self.downsample is not None:
            return self.downsample(x)
        if not self.reshapes:
            return x
        before = self.added_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added_channels - before))

    def run(self, x):
        if self.convolutions == 0:
            return self.bypass(x)
        y = x
        for i in range(1, self.convolutions + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.convolutions else y
        return F.relu(y + self.shortcut(x))

    def bypass(self, x):
        """The output of a block that is skipped."""
        if not self.reshapes:
            return x
        return F.relu(self.skip(x) if self.skip is not None else self.shortcut(x))


class Prediction(NamedTuple):
    """What a network predicts for N images. All tensors are on the CPU."""

    classes: torch.Tensor
    """The most probable class, i64 [N]."""
    probabilities: torch.Tensor
    """Its probability, f32 [N]."""
    logits: torch.Tensor
    """f32 [N, classes]."""
    path: torch.Tensor
    """Which gated blocks ran (Eq. 13), bool [N, n]."""
    macs: torch.Tensor
    """Multiply-accumulates of each image, routers and skip branches included, f64 [N]."""


class CoDiNet(nn.Module):
    """The network, built from its description.

    Args:
        meta: The description, in an export's metadata under `codinet`. Without `macs`, they are counted.
        tensors: The weights by their names. Their shapes say how wide the routers are; `load_state_dict` copies the weights.
    """

    def __init__(self, meta, tensors):
        super().__init__()
        kind, depths = PLANS[meta["arch"]]
        small = kind == "small"
        width = 16 if small else 64
        size, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(meta["channels"], width, size, stride, size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        cin = width
        widths = set()
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                name = f"layer{stage + 1}.{index}"
                stride = 2 if stage > 0 and index == 0 else 1
                block = Block(kind, cin, width << stage, stride, meta, tensors, name)
                widths |= {cin} if block.gated else set()
                cin = (width << stage) * (4 if kind == "bottleneck" else 1)
                blocks.append(block)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.router = RnnRouter(sorted(widths)) if widths and meta["router"] == "rnn" else None
        self.fc = nn.Linear(cin, meta["classes"])
        self.meta = meta

    def blocks(self) -> list[Block]:
        """All blocks, gated or not, in the order of the network."""
        return [block for s in range(self.stages) for block in getattr(self, f"layer{s + 1}")]

    def forward(self, x: torch.Tensor, skip: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Computes logits, gates and path.

        Args:
            x: f32 [N, C, H, W], normalised.
            skip: Whether a block runs only on the images that take it. Otherwise it runs on all, and a mask selects.

        Returns:
            logits [N, classes], gates U[1] − U[0] [N, n], and path (Eq. 13: 1 where the block runs) [N, n].
        """
        features, gates, path = self.compute_features(x, skip)
        return self.fc(features), gates, path

    def compute_features(self, x: torch.Tensor, skip: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same, with the features in place of the logits: the classifier's input, [N, F]."""
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        empty = x.new_zeros(x.shape[0], 0)  # for networks without gates
        gates = [empty]
        path = [empty]
        state = None
        for block in self.blocks():
            if not block.gated:
                x = block.run(x)
                continue
            u, state = self.route(block, x, state)
            gate = u[:, 1] - u[:, 0]
            run = gate >= 0
            gates.append(gate[:, None])
            path.append(run.to(x.dtype)[:, None])
            if skip:
                y = None
                for rows, function in ((run, block.run), (~run, block.bypass)):
                    if rows.any():
                        part = function(x[rows])
                        y = part.new_empty(len(x), *part.shape[1:]) if y is None else y
                        y[rows] = part
                x = y
            else:
                x = torch.where(run[:, None, None, None], block.run(x), block.bypass(x))
        return x.mean((2, 3)), torch.cat(gates, 1), torch.cat(path, 1)

    def route(self, block: Block, x: torch.Tensor, state):
        """U [N, 2] of a block, and the state of a recurrent router for the next block."""
        return (block.router(x), state) if self.router is None else self.router(x, state)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Normalises images as in training: u8 [N, C, H, W] of the network's size → f32, on the network's device.

        Raises:
            ValueError: The images have another type or shape.
        """
        expected = [self.meta["channels"], self.meta["image_size"], self.meta["image_size"]]
        if images.dtype != torch.uint8 or images.dim() != 4 or list(images.shape[1:]) != expected:
            found = f"{images.dtype} {list(images.shape)}"
            raise ValueError(f"images are {found}; the network takes torch.uint8 [N, {', '.join(map(str, expected))}]")
        x = images.to(self.fc.weight.device).float() / 255
        mean, std = (x.new_tensor(self.meta[key]).expand(expected[0])[:, None, None] for key in ("mean", "std"))
        return (x - mean) / std

    def predict(self, images: torch.Tensor, batch: int = 256) -> Prediction:
        """Classifies images; blocks run only on the images that take them.

        Args:
            images: u8 [N, C, H, W] of the network's size, N at least 1.
            batch: How many images are computed at a time.

        Raises:
            ValueError: The images have another type or shape.
        """
        logits, _, path = self._compute(self.forward, images, batch)
        probabilities, classes = logits.softmax(1).max(1)
        return Prediction(classes, probabilities, logits, path.bool(), self.macs(path))

    def paths(self, images: torch.Tensor, batch: int = 256) -> torch.Tensor:
        """Which gated blocks run for each image, bool [N, n]. Arguments and errors are those of `predict`."""
        return self._compute(self.forward, images, batch)[2].bool()

    def features(self, images: torch.Tensor, batch: int = 256) -> torch.Tensor:
        """The classifier's input for each image, f32 [N, F]. Arguments and errors are those of `predict`."""
        return self._compute(self.compute_features, images, batch)[0]

    @torch.no_grad()
    def _compute(self, function, images, batch):
        parts = [function(part, skip=True) for part in self.prepare(images).split(batch)]
        return [torch.cat(tensors).cpu() for tensors in zip(*parts)]

    def macs(self, path: torch.Tensor) -> torch.Tensor:
        """Multiply-accumulates of each image, f64 [N], from its path [N, n]. Includes routers and skip branches."""
        if "macs" not in self.meta:
            self.meta["macs"] = self.count_macs()
        total = torch.full((len(path),), float(self.meta["macs"]["ends"]), dtype=torch.float64)
        k = 0
        for block in self.meta["macs"]["blocks"]:
            if block["router"] is None:
                total += block["run"]
                continue
            run = path[:, k].double().cpu()
            total += block["router"] + run * block["run"] + (1 - run) * block["skip"]
            k += 1
        return total

    @torch.no_grad()
    def count_macs(self) -> dict:
        """MACs of one image as an export's metadata has them: `ends`, the convolution before the blocks and the classifier,
        and for each block `run`, `skip` and `router`, which is None for a block without a gate."""

        def count(function, *args):
            with FlopCounterMode(display=False) as counter:
                output = function(*args)
            return counter.get_total_flops() // 2, output

        size = self.meta["image_size"]
        stem, x = count(self.conv1, self.fc.weight.new_zeros(1, self.meta["channels"], size, size))
        x = self.pool(x)
        blocks = []
        state = None
        for block in self.blocks():
            router = None
            if block.gated:
                router, (_, state) = count(self.route, block, x, state)
            skip, _ = count(block.bypass, x) if block.gated else (0, None)
            run, x = count(block.run, x)
            blocks.append({"run": run, "skip": skip, "router": router})
        head, _ = count(self.fc, x.mean((2, 3)))
        return {"ends": stem + head, "blocks": blocks}


def example(net: CoDiNet) -> torch.Tensor:
    """An input for tracing."""
    size = net.meta["image_size"]
    return net.fc.weight.new_zeros(2, net.meta["channels"], size, size)


@torch.no_grad()
def export(net: CoDiNet, file: str | PathLike) -> None:
    """Writes a torch.export program: normalised f32 [N, C, H, W] with any N → logits, gates, path, as `forward` returns them.

    Every block is computed, because a program has no control flow that depends on the data. Read it with
    `torch.export.load(file).module()`.
    """
    program = torch.export.export(net, (example(net),), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    torch.export.save(program, file)


@torch.no_grad()
def trace(net: CoDiNet) -> torch.jit.ScriptModule:
    """The same as TorchScript, which is deprecated since torch 2.11; `.save(file)` writes it."""
    return torch.jit.trace(net, example(net))
