"""The same training step in PyTorch, with DistributedDataParallel over gloo: the reference of compare.py.

    mpirun -n 2 --bind-to core python3 tests/bench/ddp.py fashion_r20 --dtype bf16 --layout channels_last
    torchrun --nproc-per-node 2 tests/bench/ddp.py fashion_r20

Prints one line of JSON: images/s over the measured steps, the median step, and seconds of the first step, in which
torch.compile compiles. Needs: pip install torch==2.11.0 numpy pillow

The tensors are those of tests/golden/reference.py, against which the golden test checks the Rust program. The forward pass
and the losses are a fast version with fused and in-place operations, and `compare.py check` compares them with the reference.
The settings are the fastest in PyTorch that we know. Work that PyTorch can avoid is avoided: no loader process (images are
bytes in memory, or generated once), no log, no loss read back, no broadcast of running statistics, no DDP on one rank.
"""

import argparse
import dataclasses
import io
import json
import os
import pathlib
import statistics
import sys
import tarfile
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "golden"))
import reference  # noqa: E402


@dataclasses.dataclass
class Case:
    """The settings of a shipped config that determine the work of a step."""

    kind: str
    depths: list
    stride_in: str
    channels: int
    size: int
    classes: int
    hidden: int | None
    mean: list
    std: list
    beta: float
    m_d: float
    alpha: float = 0.2
    m_c: float = 0.2
    gamma: float = 0.01
    views: int = 2
    momentum: float = 0.9
    weight_decay: float = 1e-4
    lr: float = 1e-3  # small, so that a few steps from random weights stay finite

    def net(self):
        option = {**reference.OPTIONS, "hidden": self.hidden}
        return Net(self.kind, self.depths, self.stride_in, self.channels, self.classes, option)

    def static_net(self):
        net = StaticNet(self.kind, self.depths, self.stride_in, self.channels, self.classes, reference.OPTIONS)
        for block in net.blocks():
            block.router = block.skip = None
        return net


CASES = {
    "fashion_r20": Case("small", [3, 3, 3], "conv2", 1, 28, 10, None, [0.286], [0.353], 0.5, 1.0),
    "imagenet_r50": Case(
        "bottleneck", [3, 4, 6, 3], "conv1", 3, 224, 1000, 64, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 0.2, 0.5
    ),
}


class Net(reference.Net):
    """The reference's tensors and names, with a forward pass in place and fused."""

    def forward(self, x, noise):
        x = self.pool(F.relu_(self.bn1(self.conv1(x))))
        logits = []
        path = []
        for block in self.blocks():
            u = block.router(x)
            logits.append(u[:, 1] - u[:, 0])
            path.append(self.decide(logits[-1], noise[:, len(path)] if noise is not None else None))
            x = self.block(block, x, path[-1])
        return self.fc(x.mean((2, 3))), torch.stack(logits, 1), torch.stack(path, 1)

    @staticmethod
    def run(block, x):
        """The output of the block for x."""
        y = block.bn1(block.conv1(x))
        y = block.bn2(block.conv2(F.relu_(y)))
        if block.convs == 3:
            y = block.bn3(block.conv3(F.relu_(y)))
        short = x
        if block.option_a and block.extra:
            before = block.extra // 2
            short = F.pad(x[:, :, :: block.stride, :: block.stride], (0, 0, 0, 0, before, block.extra - before))
        elif block.downsample is not None:
            short = block.downsample(x)
        return F.relu_(y.add_(short))

    def block(self, block, x, v):
        ran = self.run(block, x)
        skipped = F.relu_(block.skip(x)) if block.skip is not None else x
        return torch.lerp(skipped, ran, v.to(ran.dtype)[:, None, None, None])


class StaticNet(Net):
    """The backbone: every block runs, and there are no gates."""

    def forward(self, x, noise):
        x = self.pool(F.relu_(self.bn1(self.conv1(x))))
        for block in self.blocks():
            x = self.run(block, x)
        return self.fc(x.mean((2, 3))), None, None


def losses(path, keys, first, cost, views, m_c, m_d):
    """Eqs. 8, 9 and 11 over all pairs at once. `keys` are the centres of all ranks; this rank's own start at `first`. The
    diversity loss is this rank's share, with the gradient at both ends of each pair. The sum over ranks is Eq. 9, for value
    and gradient."""
    groups = path.view(-1, views, path.shape[1])
    centres = groups.mean(1)
    con = F.relu((groups - centres.unsqueeze(1)).norm(dim=2) - m_c).square().mean()
    n = len(keys)
    near = F.relu(m_d - torch.cdist(centres, keys, compute_mode="donot_use_mm_for_euclid_dist")).square()
    self_pairs = near.diagonal(first).sum()
    share = (near.sum() - self_pairs) / (n * (n - 1))
    div = 2 * share - share.detach()
    return con, div, (path * cost).sum(1).mean()


class Images:
    """Two random views of each sample of a batch, at almost no cost in memory and time."""

    def __init__(self, case, data, samples, layout, rank, world):
        self.case = case
        self.samples = samples
        self.layout = layout
        self.random = torch.Generator().manual_seed(rank)
        self.mean, self.std = (torch.tensor(v).view(1, -1, 1, 1) for v in (case.mean, case.std))
        if data:  # grey images from shards; each rank has its own range
            first = rank * 1024
            self.pixels, self.labels = read(data, first, first + 1024)
            self.pixels = F.pad(self.pixels, (2, 2, 2, 2))
        else:
            shape = (samples * case.views, case.channels, case.size, case.size)
            self.generated = torch.randn(shape, generator=self.random).contiguous(memory_format=layout)
            self.labels = torch.randint(case.classes, (samples,), generator=self.random)

    def draw(self, *args):
        return torch.randint(*args, (self.samples * self.case.views, 1), generator=self.random)

    def batch(self):
        views = self.case.views
        size = self.case.size
        if not hasattr(self, "pixels"):
            return self.generated, self.labels.repeat_interleave(views)
        chosen = torch.randint(len(self.labels), (self.samples,), generator=self.random).repeat_interleave(views)
        positions = torch.arange(size)
        columns = torch.where(self.draw(2) == 1, positions.flip(0), positions) + self.draw(5)
        rows = positions + self.draw(5)
        bytes = self.pixels[chosen[:, None, None], rows[:, :, None], columns[:, None, :]].unsqueeze(1)
        images = bytes.float().div_(255).sub_(self.mean).div_(self.std)
        return images.contiguous(memory_format=self.layout), self.labels[chosen]


def read(folder, first, last):
    """Grey images `first` to `last` of a folder of shards, [N, H, W] u8, and their labels."""
    from PIL import Image

    images = []
    labels = []
    index = 0
    for shard in sorted(pathlib.Path(folder).glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if first <= index < last:
                    content = tar.extractfile(member).read()
                    if member.name.endswith(".cls"):
                        labels.append(int(content))
                    else:
                        image = Image.open(io.BytesIO(content))
                        images.append(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width))
                index += member.name.endswith(".cls")  # the second of a sample's two files
                if index == last:
                    return torch.stack(images), torch.tensor(labels)
    return torch.stack(images), torch.tensor(labels)


def train(options, rank, world):
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    case = CASES[options.case]
    layout = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}[options.layout]
    net = case.net()
    cost = reference.costs(net, case.size, case.channels)
    gates = len(net.gated())
    if options.gates == "none":
        net = case.static_net()
    net = net.to(memory_format=layout).train()
    model = net
    if world > 1:
        # Each rank keeps its own running statistics, and gradients are views of the buckets: both save time.
        model = torch.nn.parallel.DistributedDataParallel(
            net, broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=not options.compile
        )
    if options.compile:
        model = torch.compile(model)
    implementation = {options.sgd: True}
    optimiser = torch.optim.SGD(net.parameters(), case.lr, case.momentum, weight_decay=case.weight_decay, **implementation)
    images = Images(case, options.data, options.batch // world, layout, rank, world)

    def step():
        x, labels = images.batch()
        noise = torch.rand(len(x), gates).clamp_(1e-6, 1 - 1e-6).logit_()  # a difference of two Gumbel variables
        with torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bf16"):
            logits, _, path = model(x, noise)
        loss = F.cross_entropy(logits.float(), labels)
        if path is not None:
            centres = path.detach().view(-1, case.views, gates).mean(1)
            keys = centres
            if world > 1:
                keys = centres.new_empty(world * len(centres), gates)
                dist.all_gather_into_tensor(keys, centres)
            con, div, price = losses(path, keys, rank * len(centres), cost, case.views, case.m_c, case.m_d)
            loss = loss + case.alpha * con + case.beta * world * div + case.gamma * price
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return loss

    start = time.perf_counter()
    loss = step()
    first = time.perf_counter() - start
    for _ in range(options.warm_up - 1):
        loss = step()
    seconds = []
    for _ in range(options.steps):
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
    assert loss.isfinite(), "the loss is not finite"
    if rank == 0:
        images = options.batch * case.views
        speed = images * options.steps / sum(seconds)
        print(json.dumps({"images_per_second": speed, "median_step": statistics.median(seconds), "first_step": first}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data", help="folder of shards of grey images; default: random images")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--layout", choices=["channels_last", "contiguous"], default="channels_last")
    parser.add_argument("--gates", choices=["all", "none"], default="all")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--sgd", choices=["fused", "foreach"], default="fused")
    parser.add_argument("--batch", type=int, default=64, help="samples per step over all ranks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warm-up", type=int, default=5, help="steps before the measurement")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()

    def environment(*names):
        return next((int(os.environ[name]) for name in names if name in os.environ), None)

    rank = environment("OMPI_COMM_WORLD_RANK", "RANK") or 0
    world = environment("OMPI_COMM_WORLD_SIZE", "WORLD_SIZE") or 1
    if world > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29500")
        dist.init_process_group("gloo", rank=rank, world_size=world)
    train(options, rank, world)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
