"""A small data set in Fashion-MNIST's format, drawn here: stripes whose direction and width depend on the class."""

import gzip
import math
import random
import struct
import subprocess

SIDE = 28
CLASSES = 10


def image(draw, label):
    """28 × 28 grey values of one image."""
    angle = math.pi * label / CLASSES + draw.gauss(0, 0.05)
    width = 2.5 + label % 3
    phase = draw.uniform(0, 2 * math.pi)
    pixels = bytearray()
    for y in range(SIDE):
        for x in range(SIDE):
            wave = math.sin((x * math.cos(angle) + y * math.sin(angle)) / width + phase)
            pixels.append(max(0, min(255, round(110 + 80 * wave + draw.gauss(0, 25)))))
    return bytes(pixels)


def write(folder, name, count, draw):
    labels = bytes(i * 7 % CLASSES for i in range(count))
    images = b"".join(image(draw, label) for label in labels)
    with gzip.open(folder / f"{name}-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">IIII", 0x803, count, SIDE, SIDE) + images)
    with gzip.open(folder / f"{name}-labels-idx1-ubyte.gz", "wb") as file:
        file.write(struct.pack(">II", 0x801, count) + labels)


def make(folder, codinet_data, train=128, test=48):
    """Shards in `folder`/train and `folder`/test, if they are not there."""
    if (folder / "test/dataset.json").exists():
        return
    source = folder.with_name("idx")
    source.mkdir(parents=True, exist_ok=True)
    draw = random.Random(1)
    write(source, "train", train, draw)
    write(source, "t10k", test, draw)
    command = [codinet_data, "import", "fashion-mnist", "--src", source, "--output", folder]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
