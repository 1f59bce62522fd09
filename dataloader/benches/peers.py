#!/usr/bin/env python3
"""Compares codinet-data's loader with PyTorch's, WebDataset and DALI on the same photographs and cores.

    peers.py --photos photos --work bench --rounds 3

photos is a folder of class folders of JPEGs: your own, a published set (docs/benchmarks.md names one), or what photographs.py
makes. The shards and a copy with one damaged file are written to the folder bench, once.

Needs: pip install torch==2.11.0 torchvision==0.26.0 nvidia-dali-cuda130 webdataset. Missing programs are skipped with a message.
Each program runs once per round, pinned to the same cores by taskset; each round starts with another program. A program reads the
photographs once to warm up, then is timed over four epochs, with warm page caches. All do RandomResizedCrop(224) and a flip, and
return shuffled batches of 64 as normalised floats, as their users do; codinet-train takes `ours, tiled, u8`, and normalises on
the model's device. The consumer takes one batch after another without a pause. The time of the first batch counts from the start
of the process. With --views 2 or 4, PyTorch decodes a sample once per view, as the code of the paper's authors does. PyTorch and
DALI run with tuned settings of glibc's allocator, their best case (MALLOC_MMAP_MAX_=0 and so on).
"""

import argparse
import collections
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tarfile
import time

HERE = pathlib.Path(__file__).resolve().parent
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "268435456"}
MEAN = [0.485, 0.456, 0.406]
STD = [0.229, 0.224, 0.225]
BATCH = 64
EPOCHS = 4
DAMAGED = 200  # photographs in the set with a damaged one
OURS = {
    "ours, tiled": ["tiled", "--floats"],
    "ours, tiled, u8": ["tiled"],
    "ours, JPEGs not tiled": ["plain", "--floats"],
}


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


def torch_loader(dataset, options):
    import torch

    torch.set_num_threads(1)
    dataset = Views(dataset, options.views) if options.views > 1 else dataset
    workers = options.threads if options.threads > 1 else 0
    return torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def torchvision(options):
    """torchvision's DataLoader over PIL, as in its reference recipes."""
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    loader = torch_loader(datasets.ImageFolder(options.photos, transforms.Compose(steps)), options)
    return lambda: (len(labels) for _, labels in loader)


def torchvision_v2(options):
    """torchvision.io.decode_jpeg and transforms v2 on tensors."""
    import torch
    from torchvision import datasets, io
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    read = lambda path: io.decode_jpeg(io.read_file(path), io.ImageReadMode.RGB)
    loader = torch_loader(datasets.ImageFolder(options.photos, v2.Compose(steps), loader=read), options)
    return lambda: (len(labels) for _, labels in loader)


def webdataset(options):
    import webdataset
    from torchvision import transforms

    steps = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    shards = sorted(str(path) for path in options.shards.glob("*.tar"))
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(500).decode("pil").to_tuple("jpg;jpeg;JPEG;png", "cls").map_tuple(steps, int)
    loader = webdataset.WebLoader(dataset, batch_size=BATCH, num_workers=options.threads if options.threads > 1 else 0)
    return lambda: (len(labels) for _, labels in loader)


def dali(options):
    """DALI on the CPU, decoding only the crop."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    @pipeline_def(batch_size=BATCH, num_threads=options.threads, device_id=None, seed=1)
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
    return lambda: (len(batch[0]["label"]) for batch in loader)


PEERS = {"DALI": dali, "torchvision, PIL": torchvision, "torchvision v2": torchvision_v2, "WebDataset": webdataset}


def serve(options):
    """Runs one of the other programs: prints a line for each batch, as `codinet-data bench --timeline` does."""
    epoch = PEERS[options.one](options)
    for _ in range(options.epochs + 1):
        for samples in epoch():
            print(f"{time.time():.6f} {samples}", flush=True)


Run = collections.namedtuple("Run", "failed batches seconds_to_first last_words")


def run_program(name, options, photos, shards, epochs):
    """Runs one program in its own process, pinned to cores."""
    command = ["taskset", "-c", ",".join(map(str, range(options.threads)))]
    if name in PEERS:
        command += [sys.executable, __file__, "--one", name, "--photos", photos, "--shards", shards]
        env = {**os.environ, **TUNED}
    else:
        command += [options.codinet_data, "bench", shards, "--timeline", "--batch", BATCH]
        command += ["--floats"] if "--floats" in OURS[name] else []
        env = os.environ
    command += ["--threads", options.threads, "--views", options.views, "--epochs", epochs]
    start = time.time()
    done = subprocess.run([*map(str, command)], env=env, capture_output=True, text=True)
    printed = [line.split() for line in done.stdout.splitlines()]
    batches = [(float(line[0]), int(line[1])) for line in printed if len(line) == 2 and line[0][:1].isdigit()]
    lines = done.stderr.strip().splitlines() or ["none"]
    last_words = next((line for line in reversed(lines) if "Error" in line or "Failed" in line), lines[-1]).strip()
    return Run(done.returncode != 0, batches, batches[0][0] - start if batches else None, last_words)


def measure(run, epochs):
    """Samples per second after the first epoch, and the seconds between its full batches."""
    each = sum(samples for _, samples in run.batches) / (epochs + 1)
    seen = 0
    timed = []
    for at, samples in run.batches:
        seen += samples
        if seen >= each - 0.5:
            timed.append((at, samples))
    (first, _), (last, _) = timed[0], timed[-1]
    rate = sum(samples for _, samples in timed[1:]) / (last - first)
    between = [at - before for (before, _), (at, samples) in zip(timed, timed[1:]) if samples == BATCH]
    return rate, between


def prepare(options):
    """Makes the shards, and a set with one file cut to its half."""
    for kind, arguments in {"tiled": [], "plain": ["--no-tile"]}.items():
        command = [options.codinet_data, "import", "imagefolder", "--src", options.photos, "--output", options.work / kind, *arguments]
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    damaged = options.work / "damaged"
    if damaged.exists():
        return
    made = options.work / "damaged.part"
    shutil.rmtree(made, ignore_errors=True)
    photos = sorted(path for path in options.photos.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg"))
    photos = photos[:: max(1, len(photos) // DAMAGED)][:DAMAGED]
    (made / "shards").mkdir(parents=True)
    with tarfile.open(made / "shards/damaged-000000.tar", "w") as tar:
        for number, path in enumerate(photos):
            copy = made / "photos" / path.parent.name / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes()
            copy.write_bytes(data[: len(data) // 2] if number == len(photos) // 2 else data)
            label = made / "label"
            label.write_text("0")
            tar.add(copy, f"{number:06}.jpg")
            tar.add(label, f"{number:06}.cls")
    made.rename(damaged)


def report_damage(names, options):
    """What one damaged file costs: a table of its own."""
    photos, shards = options.work / "damaged/photos", options.work / "damaged/shards"
    total = len(list(photos.glob("*/*")))
    print(f"\n| loader, one of {total} files damaged | images of two epochs | last words |\n|---|---|---|")
    for name in (name for name in names if name in PEERS or name == "ours, JPEGs not tiled"):
        run = run_program(name, options, photos, shards, 1)
        served = sum(samples for _, samples in run.batches)
        print(f"| {name} | {served} of {2 * total} | {run.last_words if run.failed or served < 2 * total else 'none'} |")
    command = [options.codinet_data, "import", "imagefolder", "--src", photos, "--output", options.work / "refused"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    print(f"| codinet-data import | none | {done.stderr.strip().splitlines()[-1].replace(str(options.work), '')} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=pathlib.Path, required=True, help="a folder of class folders of JPEGs")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target/bench/loader"), help="where shards are written")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--codinet-data", default=shutil.which("codinet-data") or HERE.parents[1] / "target/release/codinet-data")
    parser.add_argument("--one", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--shards", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return serve(options)
    options.work.mkdir(parents=True, exist_ok=True)
    prepare(options)
    names = [name for name in [*OURS, *PEERS] if options.views == 1 or name != "WebDataset"]
    rates = collections.defaultdict(list)
    firsts = collections.defaultdict(list)
    between = collections.defaultdict(list)
    skipped = set()
    for turn in range(options.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if name in skipped:
                continue
            shards = options.work / OURS.get(name, ["plain"])[0]
            run = run_program(name, options, options.photos, shards, EPOCHS)
            if run.failed or not run.batches:
                print(f"{name}: skipped ({run.last_words})", file=sys.stderr)
                skipped.add(name)
                continue
            rate, seconds = measure(run, EPOCHS)
            rates[name].append(rate)
            firsts[name].append(run.seconds_to_first)
            between[name] += seconds
            print(f"round {turn + 1}: {name}: {rate:.1f} samples/s, first batch after {run.seconds_to_first:.2f} s", file=sys.stderr, flush=True)
    print(f"{options.views} view(s), {options.threads} core(s), {options.rounds} rounds, medians\n")
    print("| loader | samples/s (min to max) | ours, tiled, against it | first batch, s | between batches, ms: median | p99 | p99/median |\n|---|---|---|---|---|---|---|")
    for name in (name for name in names if rates[name]):
        rate = statistics.median(rates[name])
        waits = sorted(between[name])
        middle, late = 1e3 * statistics.median(waits), 1e3 * waits[-(-99 * len(waits) // 100) - 1]
        ratio = statistics.median(rates["ours, tiled"]) / rate if rates["ours, tiled"] else float("nan")
        print(f"| {name} | {rate:.0f} ({min(rates[name]):.0f} to {max(rates[name]):.0f}) | {ratio:.2f} | {statistics.median(firsts[name]):.2f} | {middle:.1f} | {late:.1f} | {late / middle:.2f} |")
    if options.views == 1:
        report_damage([name for name in names if rates[name]], options)


if __name__ == "__main__":
    main()
