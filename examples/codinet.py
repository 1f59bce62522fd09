"""A trained CoDiNet in PyTorch, from a file of `codinet-export --format safetensors`.

    from codinet import load, prepare
    net = load("net.safetensors")
    logits, gates, path = net(prepare(net, images))       # images u8 [N, C, H, W], at the network's size

    python codinet.py net.safetensors --export net.pt2         # then torch.export.load("net.pt2").module()
    python codinet.py net.safetensors --torchscript net.pt     # then torch.jit.load("net.pt"); deprecated since torch 2.11
    python codinet.py net.safetensors a.png b.jpg              # class, path and MACs of each

Needs torch and safetensors; Pillow for image files. The file's metadata describe the network, so no config is needed.
"""

import argparse
import json

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import safe_open

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


class CoDiNet(nn.Module):
    """`meta` is the description of the network in the export's metadata."""

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

    def blocks(self):
        return [block for s in range(self.stages) for block in getattr(self, f"layer{s + 1}")]

    def forward(self, x, skip: bool = False):
        """x [N, C, H, W], normalised. Returns logits [N, classes], gates U[1] − U[0] [N, n] and path (Eq. 13: 1 where the block
        runs) [N, n]. With skip, a block runs only on the images that take it; otherwise it runs on all, and a mask selects."""
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        empty = x.new_zeros(x.shape[0], 0)  # for networks without gates
        gates = [empty]
        path = [empty]
        state = None
        for block in self.blocks():
            if not block.gated:
                x = block.run(x)
                continue
            if self.router is None:
                u = block.router(x)
            else:
                u, state = self.router(x, state)
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
        return self.fc(x.mean((2, 3))), torch.cat(gates, 1), torch.cat(path, 1)

    def macs(self, path):
        """Multiply-accumulates of each image, [N], from its path. Includes routers and skip branches."""
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


def load(path):
    """Loads the network of an exported file, in evaluation mode."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if "codinet" not in metadata:
            raise ValueError(f"{path}: not a file of codinet-export --format safetensors")
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    net = CoDiNet(json.loads(metadata["codinet"]), tensors)
    missing, unexpected = net.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"{path}: missing {missing}, unexpected {unexpected}")
    return net.eval()


def prepare(net, images):
    """Normalises u8 [N, C, H, W] images, at the network's size, as in training."""
    channels = net.meta["channels"]
    mean, std = (torch.tensor(net.meta[key]).expand(channels)[:, None, None] for key in ("mean", "std"))
    return (images.float() / 255 - mean) / std


def read(net, path):
    """Reads an image file as u8 [1, C, H, W]: resized (bilinear) and cropped from the centre. Resampling differs from
    codinet-infer's in the last digits."""
    import numpy
    from PIL import Image

    meta = net.meta
    image = Image.open(path).convert("L" if meta["channels"] == 1 else "RGB")
    size = meta["image_size"]
    if meta["eval_resize"]:
        scale = meta["eval_resize"] / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in image.size)
    pixels = numpy.asarray(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels.reshape(size, size, -1).transpose(2, 0, 1).copy())[None]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file")
    parser.add_argument("images", nargs="*")
    parser.add_argument("--export", metavar="OUT", help="write the network as a torch.export program (.pt2)")
    parser.add_argument("--torchscript", metavar="OUT", help="write it as TorchScript, which is deprecated since torch 2.11")
    args = parser.parse_args()
    net = load(args.file)
    size = net.meta["image_size"]
    example = torch.randn(2, net.meta["channels"], size, size)
    # Without skip there is no control flow that depends on the data, so one traced pass is the whole network.
    with torch.no_grad():
        if args.export:
            program = torch.export.export(net, (example,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
            torch.export.save(program, args.export)
        if args.torchscript:
            torch.jit.trace(net, example).save(args.torchscript)
    for image in args.images:
        with torch.no_grad():
            logits, _, path = net(prepare(net, read(net, image)), skip=True)
        names = net.meta["class_names"]
        best = int(logits.argmax())
        bits = "".join(str(int(bit)) for bit in path[0])
        print(f"{image}: {names[best] if names else best}, {logits.softmax(1).max():.4f}, path {bits}, {int(net.macs(path))} MACs")


if __name__ == "__main__":
    main()
