"""Writes JPEGs of the kinds that ImageNet contains and our encoder does not write, and Pillow's pixels of them.

    python jpegs.py            writes jpeg/ next to this file (needs Pillow and numpy)

The dataloader's tests compare its decoder with the .rgb files: Pillow's pixels after convert("RGB").
"""

import io
import pathlib

import numpy as np
from PIL import Image

FOLDER = pathlib.Path(__file__).with_name("jpeg")


def picture(width, height, channels):
    """Waves with an edge, so that chroma and luma have detail."""
    y, x, c = np.mgrid[:height, :width, :channels]
    waves = 128 + 90 * np.sin(x * (0.11 + 0.05 * c) + y * 0.07 * (c + 1)) + 40 * np.sign(x - y + 9 * c)
    return np.clip(waves, 0, 255).astype(np.uint8)


def write(name, mode, width, height, **options):
    channels = {"RGB": 3, "CMYK": 4, "L": 1}[mode]
    pixels = picture(width, height, channels)
    image = Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels, mode)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=92, **options)
    (FOLDER / f"{name}.jpg").write_bytes(encoded.getvalue())
    decoded = Image.open(io.BytesIO(encoded.getvalue())).convert("RGB")
    (FOLDER / f"{name}.rgb").write_bytes(np.asarray(decoded).tobytes())


FOLDER.mkdir(exist_ok=True)
exif = Image.Exif()
exif[0x0112] = 6  # orientation: rotate by 90°, which training ignores
write("progressive", "RGB", 97, 71, progressive=True, subsampling=2)
write("progressive_444", "RGB", 49, 40, progressive=True, subsampling=0)
write("rgb", "RGB", 70, 45, keep_rgb=True, subsampling=0)
write("grey", "L", 61, 34)
write("oriented", "RGB", 80, 50, exif=exif, subsampling=1)
write("cmyk", "CMYK", 40, 33)
write("restarts", "RGB", 65, 50, subsampling=2, restart_marker_rows=1)
