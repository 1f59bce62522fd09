"""Training data of check.py: shards of small PNGs, and JPEGs of ImageNet's sizes."""

import io
import random
import struct
import subprocess
import tarfile
import zlib


def png(pixels, side, channels):
    """A PNG of `pixels`, bytes of [side, side, channels]."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    line = side * channels
    rows = b"".join(b"\0" + pixels[y * line : (y + 1) * line] for y in range(side))
    head = struct.pack(">IIBBBBB", side, side, 8, 2 if channels == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def shards(folder, side, channels, samples, copies):
    """Writes a shard of PNGs with stripes whose width encodes the class, and links it under `copies` names."""
    folder.mkdir()
    draw = random.Random(1)
    with tarfile.open(folder / "000.tar", "w") as tar:
        for i in range(samples):
            label, light = i % 10, draw.randrange(128)
            bar = bytes(100 * (x // (label + 1) % 2) + light for x in range(side) for _ in range(channels))
            noise = draw.randbytes(len(bar))
            rows = b"".join(bytes(b + (n >> 4) for b, n in zip(bar, noise[y:] + noise[:y])) for y in range(side))
            for name, content in ((f"{i:06}.png", png(rows, side, channels)), (f"{i:06}.cls", b"%d" % label)):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    for copy in range(1, copies):
        (folder / f"{copy:03}.tar").symlink_to("000.tar")


def photographs(folder, count):
    """Writes JPEGs of ImageNet's sizes from coarse noise and grain, in class folders. Returns their mean size in kB."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(1)
    total = 0
    for i in range(count):
        width, height = [(500, 375), (375, 500), (500, 333)][i % 3]
        scene = Image.fromarray(draw.integers(0, 256, (height // 25, width // 25, 3), dtype=np.uint8))
        pixels = np.asarray(scene.resize((width, height), Image.BICUBIC), np.float32) + draw.normal(0, 6, (height, width, 1))
        path = folder / f"class{i % 10}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=95)
        total += path.stat().st_size
    return total / count / 1000


def loader_source(options, folder):
    """The data of the loader-fed run and its description; None and the reason if there are none."""
    if options.photos:
        photos = options.photos
        return (photos / "train" if (photos / "train").is_dir() else photos), f"photographs of {photos.name}"
    try:
        mean = photographs(folder / "photos", 48 if options.quick else 1200)
    except ImportError as error:
        return None, f"no JPEGs: {error}; pip install pillow numpy, or set --photos"
    importer = options.codinet_train.with_name("codinet-data")
    description = f"generated JPEGs of {mean:.0f} kB"
    if importer.exists():
        command = [importer, "import", "imagefolder", "--src", folder / "photos", "--output", folder / "tiled"]
        if subprocess.run(command, capture_output=True).returncode == 0:
            (tiled,) = {path.parent for path in (folder / "tiled").rglob("*.tar")}
            return tiled, f"{description}, tiled"
    return folder / "photos", description
