#!/usr/bin/env python3
"""Compares codinet-data's loader with PyTorch's, DALI's and FFCV's, in images per second, on the same photographs and cores.

    photographs.py photos                                            # once
    codinet-data import imagefolder --src photos --output tiled         # once
    codinet-data import imagefolder --src photos --output plain --no-tile
    peers.py --photos photos --tiled tiled --plain plain --rounds 3

Needs: pip install torch==2.11.0 torchvision==0.26.0 nvidia-dali-cuda130 webdataset; FFCV if installed. Missing programs are
skipped with a message. Each program runs once per round, pinned to the same cores by taskset; each round starts with another
program. A program reads the photographs once to warm up, then is timed over two epochs, with warm page caches. All do
RandomResizedCrop(224) and a flip, and return shuffled batches of 64. PyTorch, DALI and FFCV return normalised floats, as
their users do. Ours returns u8, which codinet-train normalises on the model's device (`ours, f32` adds that on the same
core). With --views 2 or 4, PyTorch decodes a sample once per view, as the code of the paper's authors does. PyTorch, DALI and
FFCV run with tuned settings of glibc's allocator, their best case (MALLOC_MMAP_MAX_=0 and so on).
"""

import argparse
import collections
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "268435456"}
MEAN = [0.485, 0.456, 0.406]
STD = [0.229, 0.224, 0.225]
BATCH = 64
EPOCHS = 2


def measure_rate(epoch):
    """Samples per second of `epoch()`, which returns its number of samples, after one epoch of warm-up."""
    epoch()
    start = time.perf_counter()
    samples = sum(epoch() for _ in range(EPOCHS))
    return samples / (time.perf_counter() - start)


class Views:
    """Several views as in the code of the paper's authors: the dataset returns the sample once per view."""

    def __init__(self, dataset, views):
        self.dataset = dataset
        self.views = views

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        import torch

        views = [self.dataset[index] for _ in range(self.views)]
        return torch.stack([image for image, _ in views]), views[0][1]


def torch_loader(dataset, threads):
    import torch

    torch.set_num_threads(1)
    workers = threads if threads > 1 else 0
    return torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def torchvision(options, threads):
    """torchvision's DataLoader over PIL, as in its reference recipes."""
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    dataset = datasets.ImageFolder(options.photos, transforms.Compose(steps))
    loader = torch_loader(Views(dataset, options.views) if options.views > 1 else dataset, threads)
    return measure_rate(lambda: sum(len(labels) for _, labels in loader))


def torchvision_v2(options, threads):
    """torchvision.io.decode_jpeg and transforms v2 on tensors."""
    import torch
    from torchvision import datasets, io
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    read = lambda path: io.decode_jpeg(io.read_file(path), io.ImageReadMode.RGB)
    dataset = datasets.ImageFolder(options.photos, v2.Compose(steps), loader=read)
    loader = torch_loader(Views(dataset, options.views) if options.views > 1 else dataset, threads)
    return measure_rate(lambda: sum(len(labels) for _, labels in loader))


def webdataset(options, threads):
    import webdataset
    from torchvision import transforms

    assert options.views == 1
    steps = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    shards = sorted(str(path) for path in options.plain.glob("*.tar"))
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(500).decode("pil").to_tuple("jpg;jpeg;JPEG", "cls").map_tuple(steps, int)
    loader = webdataset.WebLoader(dataset, batch_size=BATCH, num_workers=threads if threads > 1 else 0)
    return measure_rate(lambda: sum(len(labels) for _, labels in loader))


def dali(options, threads):
    """DALI on the CPU, decoding only the crop."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=None, seed=1)
    def photographs():
        encoded, labels = fn.readers.file(file_root=str(options.photos), random_shuffle=True, name="reader")
        outs = []
        for _ in range(options.views):
            images = fn.decoders.image_random_crop(encoded, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[0.75, 4 / 3])
            images = fn.resize(images, device="cpu", size=[224, 224], interp_type=types.INTERP_LINEAR, antialias=True)
            outs.append(fn.crop_mirror_normalize(images, device="cpu", dtype=types.FLOAT, output_layout="CHW", mirror=fn.random.coin_flip(), mean=[255 * m for m in MEAN], std=[255 * s for s in STD]))
        return (*outs, labels)

    pipe = photographs()
    pipe.build()
    names = [f"view{i}" for i in range(options.views)] + ["label"]
    loader = DALIGenericIterator(pipe, names, reader_name="reader", auto_reset=True, last_batch_policy=LastBatchPolicy.PARTIAL)
    return measure_rate(lambda: sum(len(batch[0]["label"]) for batch in loader))


def ffcv(options, threads):
    """FFCV on JPEGs. Its writer decodes and encodes them; quality 96 keeps their mean size."""
    import numpy
    import torch
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter
    from torchvision import datasets

    assert options.views == 1
    path = options.photos.with_suffix(".beton")
    if not path.exists():
        fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=96), "label": IntField()}
        DatasetWriter(str(path), fields, num_workers=2).from_indexed_dataset(datasets.ImageFolder(options.photos))
    normalise = NormalizeImage(255 * numpy.array(MEAN), 255 * numpy.array(STD), numpy.float32)
    image = [RandomResizedCropRGBImageDecoder((224, 224)), RandomHorizontalFlip(), normalise, ToTensor(), ToTorchImage()]
    loader = Loader(str(path), batch_size=BATCH, num_workers=threads, order=OrderOption.RANDOM, pipelines={"image": image, "label": [IntDecoder(), ToTensor()]})
    return measure_rate(lambda: sum(len(labels) for _, labels in loader))


PEERS = {"torchvision": torchvision, "torchvision v2": torchvision_v2, "webdataset": webdataset, "DALI": dali, "FFCV": ffcv}


def run_program(name, options, threads):
    """Samples per second of one program in its own process, pinned to cores; None if it cannot run."""
    pin = ["taskset", "-c", ",".join(map(str, range(threads)))]
    if name in PEERS:
        command = [sys.executable, __file__, "--one", name, "--threads", str(threads), "--views", str(options.views), "--photos", options.photos]
        command += ["--plain", options.plain, "--tiled", options.tiled]
        env = {**os.environ, **TUNED}
    else:
        shards = options.plain if "plain" in name else options.tiled
        command = [options.codinet_data, "bench", shards, "--brief", "--threads", str(threads), "--views", str(options.views), "--batch", str(BATCH), "--epochs", str(EPOCHS)]
        command += ["--floats"] if "f32" in name else []
        env = os.environ
    done = subprocess.run([*pin, *map(str, command)], env=env, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no error output"]
        print(f"{name}: skipped ({last[0]})", file=sys.stderr)
        return None
    return float(done.stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=pathlib.Path, required=True)
    parser.add_argument("--tiled", type=pathlib.Path, required=True)
    parser.add_argument("--plain", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--codinet-data", default=shutil.which("codinet-data") or HERE.parents[1] / "target/release/codinet-data")
    parser.add_argument("--one", choices=PEERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(PEERS[options.one](options, options.threads))
        return
    names = ["ours, tiled", "ours, tiled, f32", "ours, plain", *PEERS]
    if options.views > 1:
        names = [name for name in names if name not in ("webdataset", "FFCV")]
    rates_of = collections.defaultdict(list)
    skipped = set()
    for turn in range(options.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rate = None if name in skipped else run_program(name, options, options.threads)
            if rate is None:
                skipped.add(name)
            else:
                rates_of[name].append(rate)
                print(f"round {turn + 1}: {name}: {rate:.1f} samples/s", file=sys.stderr, flush=True)
    ours = statistics.median(rates_of["ours, tiled"])
    print(f"{options.views} view(s), {options.threads} core(s), {options.rounds} rounds\n")
    print("| loader | samples/s (min to max) | images/s | ours, tiled, against it |\n|---|---|---|---|")
    for name in (name for name in names if name in rates_of):
        rates = rates_of[name]
        rate = statistics.median(rates)
        print(f"| {name} | {rate:.0f} ({min(rates):.0f} to {max(rates):.0f}) | {rate * options.views:.0f} | {ours / rate:.2f} |")


if __name__ == "__main__":
    main()
