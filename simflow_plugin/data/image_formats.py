"""The image formats that are read: their file name endings, and the decoders that may open them.

A file is opened by its content, never by its ending, and by these decoders only: others in Pillow start an
interpreter (EPS), call a network codec or have no signature, so that any bytes would do.
"""

from __future__ import annotations

import os
from functools import lru_cache

from PIL import Image

SUFFIXES_BY_FORMAT = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"),
    "MPO": (".mpo",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif", ".heics", ".heifs"),
    "QOI": (".qoi",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "PCX": (".pcx",),
}

OTHER_IMAGE_SUFFIXES = frozenset(
    {
        *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"),
        *(".dcm", ".dds", ".eps", ".exr", ".fits", ".hdr", ".icns", ".ico", ".jxl", ".jxr", ".nii", ".psd"),
        *(".svg", ".tga", ".wmf", ".xcf", ".mp4", ".mov"),
    }
)
"""Endings of images that are not read: a folder of them is told apart from a folder without images."""

PACKAGE_BY_FORMAT = {"HEIF": "pip install 'simflow-plugin[heic]'", "AVIF": "a Pillow built with libavif"}


@lru_cache(maxsize=1)
def readable_formats() -> tuple[str, ...]:
    """Return the formats that this installation decodes, of those that are allowed."""
    Image.init()
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    return tuple(name for name in SUFFIXES_BY_FORMAT if name in Image.OPEN)


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Return the file name endings, in lower case, of the formats that this installation decodes."""
    return frozenset(suffix for name in readable_formats() for suffix in SUFFIXES_BY_FORMAT[name])


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is taken for an image: `name` ends in one of `image_suffixes`."""
    return suffix_of(name) in image_suffixes()


def suffix_of(name: str) -> str:
    """Return the ending of a file name, from its last dot on, in lower case; '' without one."""
    return os.path.splitext(name)[1].lower()


def unread_kind(suffix: str) -> str:
    """Name files of an ending that is not read, for a count: the ending, and the package that would read them."""
    for name, suffixes in SUFFIXES_BY_FORMAT.items():
        if suffix in suffixes and name not in readable_formats():
            return f"{suffix} (needs {PACKAGE_BY_FORMAT.get(name, f'a Pillow that reads {name}')})"
    if suffix in OTHER_IMAGE_SUFFIXES:
        return f"{suffix} (images of a kind that is not read)"
    return suffix or "no ending"


def known_endings() -> str:
    """Return the endings that are read, for a message."""
    return ", ".join(sorted(image_suffixes()))
