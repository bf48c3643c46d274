"""Small image files of every format that Pillow writes and we read, and ways to damage them."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

SIDE = 12
SAVED_AS = {  # name: (mode, format, options)
    "png": ("RGB", "PNG", {}),
    "png-palette": ("P", "PNG", {"transparency": 3}),
    "png-16": ("I;16", "PNG", {}),
    "jpeg": ("RGB", "JPEG", {}),
    "jpeg-cmyk": ("CMYK", "JPEG", {"progressive": True}),
    "mpo": ("RGB", "MPO", {}),
    "gif": ("P", "GIF", {}),
    "bmp": ("RGB", "BMP", {}),
    "webp": ("RGBA", "WEBP", {}),
    "webp-lossless": ("RGB", "WEBP", {"lossless": True}),
    "tiff": ("RGB", "TIFF", {}),
    "tiff-float": ("F", "TIFF", {}),
    "tiff-lzw": ("L", "TIFF", {"compression": "tiff_lzw"}),
    "tiff-jpeg": ("RGB", "TIFF", {"compression": "jpeg"}),
    "tiff-1": ("1", "TIFF", {"compression": "group4"}),
    "ppm": ("RGB", "PPM", {}),
    "pgm-16": ("I;16", "PPM", {}),
    "pfm": ("F", "PPM", {}),
    "jpeg2000": ("RGB", "JPEG2000", {}),
    "avif": ("RGB", "AVIF", {"speed": 10}),
    "qoi": ("RGBA", "QOI", {}),
    "sgi": ("RGB", "SGI", {}),
    "pcx": ("P", "PCX", {}),
    "exif": ("RGB", "JPEG", {"exif": "orientation"}),
}


def seed_files() -> dict[str, bytes]:
    """Return one valid file of each kind that this Pillow writes."""
    return {name: encode(*settings) for name, settings in SAVED_AS.items() if can_write(settings[1])}


def can_write(name: str) -> bool:
    Image.init()
    return name in Image.SAVE


def encode(mode: str, name: str, options: dict) -> bytes:
    """Return a file of a random picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE + 1, 3), dtype=np.uint8)
    grey = pixels[..., 0]
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) << 8)
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32))
    else:
        image = Image.fromarray(pixels).convert(mode)
    if options.get("exif") == "orientation":
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif}
    buffer = io.BytesIO()
    image.save(buffer, format=name, **options)
    return buffer.getvalue()


def mutants(content: bytes, count: int, random: np.random.Generator) -> Iterator[bytes]:
    """Yield damaged copies: bytes overwritten (often in the head), bits flipped, parts cut, repeated or swapped."""
    for _ in range(count):
        damaged = bytearray(content)
        for _ in range(int(random.integers(1, 5))):
            _damage(damaged, random)
        yield bytes(damaged)


def _damage(content: bytearray, random: np.random.Generator) -> None:
    if not content:
        return
    reach = len(content) if random.random() < 0.5 else min(len(content), 96)
    place, length = int(random.integers(reach)), int(random.integers(1, 9))
    match int(random.integers(6)):
        case 0:
            content[place : place + length] = random.bytes(length)
        case 1:
            content[place] ^= 1 << int(random.integers(8))
        case 2:
            content[place : place + length] = bytes([int(random.choice([0, 1, 127, 128, 255]))]) * length
        case 3:
            del content[place:]
        case 4:
            content[place:place] = content[place : place + 4 * length]
        case 5:
            other = int(random.integers(len(content)))
            content[place : place + length] = content[other : other + length]
