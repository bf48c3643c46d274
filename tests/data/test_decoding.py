"""Pixels of files: upright, over a background, scaled by their type; what cannot be decoded is named."""

from __future__ import annotations

import io
import os
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from simflow_plugin.data.decoding import CorruptImage, decode_image, read_image_file
from simflow_plugin.data.options import FileOptions
from tests.data.makers import CORRUPT, png


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def decoded(content: bytes, **options) -> np.ndarray:
    """Pixels (H, W, 3)."""
    return np.asarray(decode_image(content, "some/file", **options))


def grey(pixels: np.ndarray, kind: str = "TIFF") -> list[int]:
    """Encode grey pixels, decode them, return the first channel's values."""
    return decoded(encoded(Image.fromarray(pixels), kind))[..., 0].ravel().tolist()


def quadrants() -> Image.Image:
    """Four grey levels, 16 x 8 (width x height), so that every turn and every mirror image differs."""
    pixels = np.kron([[10, 80], [150, 220]], np.ones((4, 8)))[..., None].repeat(3, -1)
    return Image.fromarray(pixels.astype(np.uint8))


TURNS = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", [*range(10), 65535])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} | ({"lossless": True} if kind == "WEBP" else {})
    pixels = decoded(encoded(quadrants(), kind, **options))
    expected = TURNS.get(orientation, TURNS[1])(np.asarray(quadrants()))
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 3


def half_transparent(mode: str) -> Image.Image:
    """A black picture whose left half is transparent."""
    alpha = Image.fromarray(np.array([[0, 0, 255, 255]] * 4, dtype=np.uint8))
    if mode == "LA":
        return Image.merge("LA", (Image.new("L", (4, 4)), alpha))
    return Image.merge("RGBA", (*[Image.new("L", (4, 4))] * 3, alpha))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_laid_over_the_background(mode):
    content = encoded(half_transparent(mode))
    assert decoded(content)[0].tolist() == [[255] * 3] * 2 + [[0] * 3] * 2
    assert decoded(content, background=(9, 8, 7))[0].tolist() == [[9, 8, 7]] * 2 + [[0] * 3] * 2


def test_half_of_the_background_shows_through_half_transparency():
    content = encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)))
    assert decoded(content)[0, 0].tolist() == [127] * 3


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_colour_that_stands_for_transparent_is_replaced(mode):
    image = Image.new("RGB", (4, 4)).convert(mode)
    transparent = {"P": image.getpixel((0, 0)) if mode == "P" else 0, "RGB": (0, 0, 0)}.get(mode, 0)
    assert np.unique(decoded(encoded(image, transparency=transparent))).tolist() == [255]


def test_palette_of_a_gif_with_a_transparent_colour():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.putpixel((1, 1), 1)
    pixels = decoded(encoded(image, "GIF", transparency=0))
    assert pixels[0, 0].tolist() == [255] * 3
    assert pixels[1, 1].tolist() == [200, 100, 50]


def test_transparent_grey_of_sixteen_bits():
    image = Image.fromarray(np.array([[0, 25600]], dtype=np.uint16))
    assert decoded(encoded(image, transparency=0))[0, :, 0].tolist() == [255, 100]


@pytest.mark.parametrize(
    ("values", "dtype", "kind", "expected"),
    [
        *(([0, 255, 25600, 65535], "uint16", kind, [0, 0, 100, 255]) for kind in ("PNG", "TIFF", "PPM")),
        ([0, 0.25, 0.5, 1], "float32", "TIFF", [0, 64, 128, 255]),
        ([0, 99.6, 255], "float32", "TIFF", [0, 100, 255]),
        ([0, 7, 255], "int32", "TIFF", [0, 7, 255]),
        ([0, 256 * 7, 65535], "int32", "TIFF", [0, 7, 255]),
    ],
)
def test_deep_pixels_are_scaled_by_their_type_and_range(values, dtype, kind, expected):
    assert grey(np.array([values], dtype=dtype), kind) == expected


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        *(([0, value], "float32") for value in (-1, 1.5, 4000, np.nan, np.inf)),
        *(([0, value], "int32") for value in (-5, 1 << 20)),
    ],
)
def test_pixels_of_no_known_range_are_refused_by_name(values, dtype):
    with pytest.raises(CorruptImage, match=r"some/file: .*pixels from .*Save it with 8 or 16 bits"):
        grey(np.array([values], dtype=dtype))


def test_twelve_bits_are_scaled_where_the_file_says_so():
    # Pillow reads TIFFs of 12 packed bits but writes none: two pixels in three bytes.
    values = [0, 256 * 8, 4095, 4095]
    packed = b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in (values[:2], values[2:]))
    shorts = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 277: 1, 278: 1}
    entries = sorted(
        [*((tag, 3, value) for tag, value in shorts.items()), (273, 4, 8), (279, 4, len(packed))]
    )
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", t, k, 1, v) for t, k, v in entries
    )
    content = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory + bytes(4)
    assert decoded(content)[0, :, 0].tolist() == [0, 128, 255, 255]


@pytest.mark.parametrize("content", [CORRUPT, b"", b"hello", png(3)[:60]])
def test_corrupt_bytes_are_named(content):
    with pytest.raises(CorruptImage, match="some/file"):
        decoded(content)


@pytest.mark.parametrize(
    "error", [TypeError, OverflowError, MemoryError, RecursionError, struct.error, RuntimeError]
)
def test_whatever_a_decoder_raises_is_a_corrupt_image(monkeypatch, error):
    def fail(*arguments, **options):
        raise error("from the decoder")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(CorruptImage, match=rf"some/file: .*{error.__name__}: from the decoder"):
        decoded(png(1))


def test_postscript_that_is_called_an_image_starts_no_interpreter(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.EpsImagePlugin", None)
    called = []
    monkeypatch.setattr("subprocess.check_call", called.append)
    with pytest.raises(CorruptImage, match="some/file"):
        decoded(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    assert called == []


@pytest.mark.parametrize("kind", ["TGA", "DDS", "ICO", "XBM", "IM", "SPIDER"])
def test_formats_that_are_not_allowed_are_not_opened(kind):
    image = Image.new({"SPIDER": "F", "XBM": "1"}.get(kind, "RGB"), (32, 32))
    with pytest.raises(CorruptImage):
        decoded(encoded(image, kind))


def test_picture_of_too_many_pixels_is_refused(monkeypatch):
    assert Image.MAX_IMAGE_PIXELS < 1 << 27  # Pillow's own limit; twice that is refused
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 20 // 2 - 1)
    with pytest.raises(CorruptImage, match="DecompressionBomb"):
        decoded(png(1, (20, 20)))


def test_huge_jpeg_is_decoded_smaller_but_never_too_small(monkeypatch):
    monkeypatch.setattr("simflow_plugin.data.decoding.DRAFT_PIXELS", 100 * 100)
    content = encoded(Image.new("RGB", (800, 400), (200, 100, 50)), "JPEG")
    image = decode_image(content, "some/file", size=32)
    assert image.size == (200, 100)
    assert np.abs(np.asarray(image).reshape(-1, 3).astype(int) - [200, 100, 50]).max() <= 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [("pipe.png", "not a regular file"), ("gone.png", ""), ("folder.png", ""), ("large.png", "more than")],
)
def test_what_is_no_file_of_an_image_is_named_and_nobody_waits_for_it(tmp_path, name, reason):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(2 << 30)  # a hole: takes no space
    with pytest.raises(CorruptImage, match=f"{name}: .*{reason}"):
        read_image_file(tmp_path / name)


@pytest.mark.parametrize("value", ["nocolour", "#12", "#11223344"])
def test_background_that_is_no_colour_is_refused(value):
    with pytest.raises(ValueError, match="olo|transparent"):
        FileOptions(background=value)


def test_heic_is_read_where_its_package_is_installed():
    pytest.importorskip("pillow_heif", reason="needs the `heic` extra")
    pixels = decoded(encoded(Image.new("RGB", (64, 64), (200, 100, 50)), "HEIF"))
    assert np.abs(pixels.reshape(-1, 3).astype(int) - [200, 100, 50]).max() <= 4
