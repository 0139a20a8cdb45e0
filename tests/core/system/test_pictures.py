"""Every kind of picture file: read right, or refused in words."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from selfnpo_core.errors import InputError
from selfnpo_core.system.pictures import SUFFIXES, frame_files, is_moving, read_picture

RAMP = np.arange(0, 65536, 4369, dtype=np.uint16).reshape(2, 8)
"""16 bits, every value 257 times one of 8 bits."""
GREY = (RAMP // 257).astype(np.uint8)
COLOURS = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def stored(path: Path, picture: Image.Image, **more: object) -> np.ndarray:
    picture.save(path, **more)
    read = read_picture(path)
    assert read.mode == "RGB"
    return np.asarray(read).astype(int)


def png(depth: int, colour: int, row: bytes, width: int, **chunks: bytes) -> bytes:
    """A file of one row, byte by byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0))
    more = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


def alpha(values: np.ndarray, opacity: int) -> np.ndarray:
    return np.concatenate([values, np.full((*values.shape[:2], 1), opacity, np.uint8)], axis=-1)


def on_white(values: np.ndarray, opacity: int) -> np.ndarray:
    return np.rint((values * float(opacity) + 255 * (255 - opacity)) / 255).astype(int)


RGB = Image.fromarray(COLOURS)
CASES = {  # name: the picture, what it shows, how it is saved
    "grey.png": (Image.fromarray(GREY), grey(GREY), {}),
    "colours.png": (RGB, COLOURS, {}),
    "colours.bmp": (RGB, COLOURS, {}),
    "colours.PPM": (RGB, COLOURS, {}),
    "colours.tga": (RGB, COLOURS, {}),
    "colours.webp": (RGB, COLOURS, {"lossless": True}),
    "colours.jp2": (RGB, COLOURS, {"irreversible": False}),
    "colours.TIFF": (RGB, COLOURS, {"compression": "tiff_lzw"}),
    "bits.png": (Image.fromarray(GREY > 127), grey((GREY > 127) * np.uint8(255)), {}),
    "bits.tif": (Image.fromarray(GREY > 127), grey((GREY > 127) * np.uint8(255)), {"compression": "group4"}),
    "deep.png": (Image.fromarray(RAMP), grey(GREY), {}),
    "deep.tiff": (Image.fromarray(RAMP), grey(GREY), {}),
    "deep-big-endian.tiff": (Image.fromarray(RAMP).convert("I").convert("I;16B"), grey(GREY), {}),
    "deep-white-is-zero.tiff": (Image.fromarray(RAMP), 255 - grey(GREY), {"tiffinfo": {262: 0}}),
    "deep.jp2": (Image.fromarray(RAMP), grey(GREY), {"irreversible": False}),
    "deep.pgm": (Image.fromarray(RAMP), grey(GREY), {}),
    "palette.png": (RGB.quantize(16), COLOURS, {}),
    "palette.gif": (RGB.quantize(16), COLOURS, {}),
    "cmyk.tiff": (RGB.convert("CMYK"), COLOURS, {}),
    "grey-alpha.png": (
        Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (8, 2), 51)]),
        on_white(grey(GREY), 51),
        {},
    ),
    "hidden.png": (Image.fromarray(alpha(COLOURS, 0)), np.full((2, 8, 3), 255), {}),
    "hidden.webp": (Image.fromarray(alpha(COLOURS, 0)), np.full((2, 8, 3), 255), {"lossless": True, "exact": True}),
    "hidden.tiff": (Image.fromarray(alpha(COLOURS, 0)), np.full((2, 8, 3), 255), {}),
    "glass.png": (Image.fromarray(alpha(COLOURS, 51)), on_white(COLOURS, 51), {}),
    "opaque.png": (Image.fromarray(alpha(COLOURS, 255)), COLOURS, {}),
    "key.png": (RGB, np.where(COLOURS[0, 0] == COLOURS, 255, COLOURS), {"transparency": tuple(COLOURS[0, 0].tolist())}),
    "deep-key.png": (
        Image.fromarray(RAMP),
        grey(np.where(RAMP == 4369, np.uint8(255), GREY)),
        {"transparency": 4369},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_mode_is_read_right(tmp_path: Path, name: str) -> None:
    picture, wanted, how = CASES[name]
    assert np.abs(stored(tmp_path / name, picture, **how) - wanted).max() <= (1 if "cmyk" in name else 0)


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "webp", "tiff"])
@pytest.mark.parametrize("mark", range(1, 9))
def test_orientation_marks_are_obeyed(tmp_path: Path, suffix: str, mark: int) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255
    upright[8:, 24:, 0] = 255
    turn = {2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1], 5: lambda x: x.swapaxes(0, 1)}
    turn |= {1: lambda x: x, 6: lambda x: np.rot90(x), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1)}
    turn[8] = lambda x: np.rot90(x, -1)
    exif = Image.Exif()
    exif[274] = mark
    as_stored = Image.fromarray(np.ascontiguousarray(turn[mark](upright)))
    more = {"quality": 100, "exif": exif} if suffix != "tiff" else {"tiffinfo": {274: mark}}
    read = stored(tmp_path / f"a.{suffix}", as_stored, **more)
    assert read.shape == upright.shape
    assert np.abs(read - upright).mean() < 12


def test_greys_of_few_bits_with_a_transparent_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(2, 0, bytes([0b00011011]), 4, tRNS=b"\0\2"))
    assert np.asarray(read_picture(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 85, 255, 255]


def test_twelve_bits(tmp_path: Path) -> None:
    """Of a TIFF, which Pillow reads and does not write: two pixels, 0xfff and 0x800, in three bytes."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    pixels = b"\xff\xf8\x00" + b"\0" * 5
    (tmp_path / "a.tif").write_bytes(
        b"II*\0" + struct.pack("<I", 16) + pixels + struct.pack("<H", 9) + entries + b"\0" * 4
    )
    assert np.asarray(read_picture(tmp_path / "a.tif"))[0, :, 0].tolist() == [255, 128]


def test_colour_profiles(tmp_path: Path) -> None:
    """A picture whose profile says Lab's XYZ-like primaries turns; one in sRGB does not."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(stored(tmp_path / "a.png", RGB, icc_profile=srgb), COLOURS)
    swapped = bytearray(srgb)  # red's and blue's primaries change places, under another name
    at = {bytes(srgb[132 + 12 * i : 136 + 12 * i]): 136 + 12 * i for i in range(srgb[131])}
    red, blue = (bytes(srgb[at[tag] : at[tag] + 4]) for tag in (b"rXYZ", b"bXYZ"))
    swapped[at[b"rXYZ"] : at[b"rXYZ"] + 4], swapped[at[b"bXYZ"] : at[b"bXYZ"] + 4] = blue, red
    other = bytes(swapped).replace("sRGB".encode("utf-16-be"), "else".encode("utf-16-be")).replace(b"sRGB", b"else")
    read = stored(tmp_path / "b.png", RGB, icc_profile=other)
    assert np.abs(read - COLOURS[..., ::-1]).max() <= 3
    assert np.array_equal(stored(tmp_path / "c.png", RGB, icc_profile=b"none"), COLOURS)


def frames(path: Path, **more: object) -> None:
    RGB.save(path, save_all=True, append_images=[Image.fromarray(255 - COLOURS)], **more)


REFUSED = {
    "moving.gif": "holds 2 frames",
    "moving.webp": "holds 2 frames",
    "moving.png": "holds 2 frames",
    "pages.tiff": "holds 2 frames or pages",
    "float.tiff": "mode F",
    "float.pfm": "mode F",
    "int.tiff": "mode I",
    "deep-key.png": "transparent colour of 16 bits",
    "text.png": "cannot be read",
    "cut.png": "cannot be read",
    "gone.png": "does not exist",
    "program.png": "cannot be read",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_still_picture_of_8_bits_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    make = {
        "float": lambda: Image.fromarray(RAMP.astype(np.float32)).save(path),
        "int": lambda: Image.fromarray(RAMP.astype(np.int32)).save(path),
        "deep-key": lambda: path.write_bytes(png(16, 2, bytes(range(12)), 2, tRNS=bytes(range(6)))),
        "text": lambda: path.write_text("a picture of a cat"),
        "cut": lambda: path.write_bytes(noise()[:-60]),
        "gone": lambda: None,
        "program": lambda: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
    }
    make.get(path.stem, lambda: frames(path))()
    with pytest.raises(InputError, match=REFUSED[name]) as error:
        read_picture(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def noise() -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def test_a_jpeg_with_a_preview_is_its_first_picture(tmp_path: Path) -> None:
    frames(tmp_path / "a.mpo", quality=100, subsampling=0)
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert np.abs(np.asarray(read_picture(tmp_path / "a.jpg")).astype(int) - COLOURS).mean() < 6


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10.png", "2.PNG", "1.bmp", "011.jpg", ".3.png", "notes.txt"):
        RGB.save(tmp_path / name, format="png")
    frames(tmp_path / "4.gif")
    assert [file.name for file in frame_files(tmp_path)] == ["1.bmp", "2.PNG", "10.png", "011.jpg"]
    RGB.save(tmp_path / "10.jpeg")
    with pytest.raises(InputError, match=r"twice \(10\.jpeg, 10\.png\)"):
        frame_files(tmp_path)


def test_what_moves(tmp_path: Path) -> None:
    for name in ("a.gif", "a.webp", "a.png"):
        frames(tmp_path / name)
        RGB.save(tmp_path / f"still-{name}")
    assert [is_moving(file) for file in sorted(tmp_path.iterdir())] == [True] * 3 + [False] * 3
    (tmp_path / "cut.gif").write_bytes(b"GIF89a")
    assert is_moving(tmp_path / "cut.gif")


def test_suffixes() -> None:
    assert {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif"} <= SUFFIXES
    assert not {".eps", ".pdf", ".mpg", ".txt", ""} & SUFFIXES
