#!/usr/bin/env python3
"""Prints a line for each image below a folder: SHA-256 of its RGB pixels by Pillow, width, height, path below the folder.

    python3 tests/golden/pixel_digests.py FOLDER

tests/dataloader/pillow.rs compares them with the loader's pixels.
"""

import hashlib
import sys
from multiprocessing import Pool
from pathlib import Path

from PIL import Image


def digest(path):
    with Image.open(path) as image:
        pixels = image.convert("RGB")
        return hashlib.sha256(pixels.tobytes()).hexdigest(), *pixels.size


def main():
    folder = Path(sys.argv[1])
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    with Pool() as pool:
        for path, (sha256, width, height) in zip(paths, pool.imap(digest, paths, chunksize=32)):
            print(sha256, width, height, path.relative_to(folder), sep="\t")


if __name__ == "__main__":
    main()
