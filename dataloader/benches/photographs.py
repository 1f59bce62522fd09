#!/usr/bin/env python3
"""Generates photographs of ImageNet's sizes for timing loaders: an ImageFolder of 20 classes.

    photographs.py OUT [--count 1200] [--wallpapers FOLDER]     (needs Pillow and numpy)

They are cut from the wallpapers of Debian's mate-backgrounds, plasma-workspace-wallpapers, lomiri-wallpapers-16.04 and
lomiri-wallpapers-20.04 (apt-get download, dpkg -x). ImageNet's training images have a mean of 110 kB and 400x350
pixels; their most common size is 500x375. Wallpapers are denoised, so the script adds grain and sharpening: without them, JPEGs of
this size have half as many bytes to decode. There are few scenes, so the images are only fit for timing.
"""

import argparse
import pathlib
import random

import numpy as np
from PIL import Image, ImageFilter

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--count", type=int, default=1200)
parser.add_argument("--wallpapers", type=pathlib.Path, default=pathlib.Path("/usr/share"))
options = parser.parse_args()

draw = random.Random(1)
grain = np.random.default_rng(1)
images = [path for path in sorted(options.wallpapers.rglob("*")) if path.suffix in (".jpg", ".jpeg", ".png") and not path.is_symlink()]
scenes = []
for path in images:
    if path.stat().st_size < 200_000:
        continue
    scene = Image.open(path).convert("RGB")
    if min(scene.size) >= 1000:
        scale = 1500 / min(scene.size)
        scenes.append(scene.resize((round(scene.width * scale), round(scene.height * scale)), Image.LANCZOS))
if not scenes:
    raise SystemExit(f"photographs.py: no wallpapers under {options.wallpapers}; see --help")

total = 0
for i in range(options.count):
    size = draw.choices([(500, 375), (375, 500), (500, 333), (None, None)], [55, 15, 15, 15])[0]
    width, height = size if size[0] else (draw.randint(300, 700), draw.randint(300, 700))
    scene = draw.choice(scenes)
    zoom = draw.uniform(1, min(scene.width / width, scene.height / height, 2.5))
    w, h = int(width * zoom), int(height * zoom)
    left, top = draw.randint(0, scene.width - w), draw.randint(0, scene.height - h)
    image = scene.crop((left, top, left + w, top + h)).resize((width, height), Image.LANCZOS)
    image = image.filter(ImageFilter.UnsharpMask(1, draw.randint(50, 150), 0))
    pixels = np.asarray(image, np.float32) + grain.normal(0, draw.uniform(2, 7), (height, width, 1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    grey = draw.random() < 0.01
    folder = options.out / f"class{i % 20:02}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{i:05}.JPEG"
    sampling = {} if grey else {"subsampling": draw.choices([2, 0], [87, 13])[0]}
    (image.convert("L") if grey else image).save(path, "JPEG", quality=draw.randint(93, 98), **sampling)
    total += path.stat().st_size
print(f"{options.count} photographs, {total / options.count / 1000:.1f} kB on average, from {len(scenes)} wallpapers")
