"""Decoding: the written rule for every colour mode, and one reason code for every kind of broken file."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from pipeline.errors import DataError, Reason
from pipeline.samples import image as image_module
from pipeline.samples.image import ImageHeader, ImageLimits, Pixels, decode_image, probe_image
from tests.pipeline.samples.pictures import encoded, picture, png16, png_header, smooth_rgb


def expect(data: bytes, reason: Reason, limits: ImageLimits | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        decode_image(data, limits or ImageLimits())
    assert caught.value.reason == reason
    return caught.value


def pixels_or_reason(data: bytes, limits: ImageLimits | None = None) -> Pixels | str:
    try:
        return decode_image(data, limits or ImageLimits())
    except DataError as error:
        return error.reason.value


def pillow_rgb(data: bytes) -> Pixels:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(("image_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_decode_of_lossless_picture_returns_its_pixels(image_format: str, options: dict[str, bool]) -> None:
    data = picture(13, 29, image_format, **options)
    assert (decode_image(data) == smooth_rgb(13, 29)).all()
    assert probe_image(data) == ImageHeader(image_format, 29, 13)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}])
def test_decode_of_jpeg_equals_pillow_with_and_without_the_fast_decoder(
    options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture(61, 83, "JPEG", **options)
    fast = decode_image(data)
    monkeypatch.setattr(image_module, "simplejpeg", None)
    assert (decode_image(data) == pillow_rgb(data)).all()
    assert (fast == pillow_rgb(data)).all()


def test_image_module_imports_and_decodes_without_simplejpeg() -> None:
    program = (
        "import sys; sys.modules['simplejpeg'] = None\n"
        "from pipeline.samples.image import decode_image, simplejpeg\n"
        "assert simplejpeg is None\n"
        "print(decode_image(sys.stdin.buffer.read()).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=picture(7, 11, "JPEG"), capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == "(7, 11, 3)"


def constant(mode: str, value: object) -> Image.Image:
    return Image.new(mode, (5, 3), value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encoded(constant("L", 77), "PNG"), (77, 77, 77)),
        (encoded(constant("L", 77), "JPEG"), (77, 77, 77)),
        (encoded(constant("1", 1), "PNG"), (255, 255, 255)),
        (encoded(constant("LA", (40, 255)), "PNG"), (40, 40, 40)),
        (encoded(constant("LA", (40, 0)), "PNG"), (255, 255, 255)),
        (encoded(constant("RGBA", (10, 20, 30, 255)), "PNG"), (10, 20, 30)),
        (encoded(constant("RGBA", (10, 20, 30, 0)), "PNG"), (255, 255, 255)),
        (encoded(constant("RGBA", (0, 0, 0, 51)), "PNG"), (204, 204, 204)),
        (encoded(constant("RGBA", (10, 20, 30, 0)), "WEBP", lossless=True, exact=True), (255, 255, 255)),
        (encoded(constant("RGB", (9, 8, 7)), "PNG", transparency=(9, 8, 7)), (255, 255, 255)),
        (encoded(constant("RGB", (9, 8, 7)).quantize(4), "PNG"), (9, 8, 7)),
        (encoded(constant("RGB", (9, 8, 7)).quantize(4), "PNG", transparency=0), (255, 255, 255)),
    ],
)
def test_decode_of_colour_mode_follows_the_rule(data: bytes, colour: tuple[int, int, int]) -> None:
    pixels = decode_image(data)
    assert pixels.shape == (3, 5, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.reshape(-1, 3).astype(int) - colour).max() <= 1


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (255, 0), (256, 1), (0x8000, 0x80), (0xFFFF, 0xFF)])
def test_decode_of_16_bit_grey_keeps_the_upper_bits(value: int, grey: int) -> None:
    data = encoded(Image.fromarray(np.full((3, 5), value, np.uint16)), "PNG")
    assert (decode_image(data) == grey).all()


def test_decode_of_16_bit_grey_with_colour_key_lays_that_value_over_white() -> None:
    grey = np.array([[0x1234, 0x1235, 0x12FF, 0x1234]], np.uint16).repeat(3, 0)
    data = bytearray(encoded(Image.fromarray(grey), "PNG"))
    key = b"tRNS" + (0x1234).to_bytes(2, "big")
    data[data.index(b"IDAT") - 4 : data.index(b"IDAT") - 4] = (
        struct.pack(">I", 2) + key + struct.pack(">I", zlib.crc32(key))
    )
    assert decode_image(bytes(data))[0, :, 0].tolist() == [255, 0x12, 0x12, 255]


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (png16(0, 0x80FF), (0x80, 0x80, 0x80)),
        (png16(2, 0x01FF, 0x8000, 0xFFFF), (0x01, 0x80, 0xFF)),
        (png16(4, 0x4000, 0xFFFF), (0x40, 0x40, 0x40)),
        (png16(4, 0x4000, 0), (255, 255, 255)),
        (png16(6, 0x0100, 0x0200, 0x0300, 0xFFFF), (1, 2, 3)),
        (png16(6, 0x0100, 0x0200, 0x0300, 0), (255, 255, 255)),
    ],
)
def test_decode_of_16_bit_png_of_every_colour_type_keeps_the_upper_bits(
    data: bytes, colour: tuple[int, int, int]
) -> None:
    pixels = decode_image(data)
    assert (str(pixels.shape), str(pixels.dtype)) == ("(3, 5, 3)", "uint8")
    assert np.array_equal(pixels, np.broadcast_to(colour, (3, 5, 3))), pixels[0, 0]


def test_decode_of_floating_point_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # none of the three formats stores them; the rule is for a parser that learns to
    monkeypatch.setattr(image_module, "FORMATS", ("TIFF",))
    expect(encoded(Image.fromarray(np.full((3, 5), 0.5, np.float32)), "TIFF"), Reason.IMAGE_MODE_UNSUPPORTED)


def test_decode_of_cmyk_jpeg_equals_pillow() -> None:
    data = encoded(Image.fromarray(smooth_rgb(31, 37)).convert("CMYK"), "JPEG", quality=95)
    assert (decode_image(data) == pillow_rgb(data)).all()
    assert np.abs(decode_image(data).astype(int) - smooth_rgb(31, 37)).mean() < 12


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_decode_of_animation_shows_the_first_frame(image_format: str) -> None:
    frames = [Image.fromarray(np.full((7, 5, 3), value, np.uint8)) for value in (31, 97, 211)]
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert (decode_image(data) == 31).all()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_applies_exif_orientation(orientation: int, image_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = picture(40, 24, image_format, exif=exif if image_format == "TIFF" else exif.tobytes())
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert (decode_image(data) == expected).all()
    height, width, _ = expected.shape
    assert probe_image(data) == ImageHeader(image_format, width, height)
    assert (width, height) == ((40, 24) if orientation >= 5 else (24, 40))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_decode_with_damaged_exif_ignores_it(exif: bytes) -> None:
    assert decode_image(picture(16, 8, "JPEG", exif=exif)).shape == (16, 8, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"not an image",
        b"<html><body>404</body></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        picture(5, 7, "GIF"),
        picture(5, 7, "PPM"),
        picture(5, 7, "JPEG2000"),
        b"BMW is a maker of cars, and this is text",
        b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00heicmif1",
    ],
)
def test_decode_of_other_formats_is_refused_by_both(data: bytes) -> None:
    expect(data, Reason.IMAGE_UNSUPPORTED_FORMAT)
    with pytest.raises(DataError):
        probe_image(data)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_decode_of_file_cut_anywhere_refuses_or_returns_all_pixels(image_format: str) -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    data = picture(33, 41, image_format)
    whole = decode_image(data)
    refused = 0
    for cut in range(0, len(data), 7):
        pixels = pixels_or_reason(data[:cut])
        refused += isinstance(pixels, str)
        assert isinstance(pixels, str) or (pixels == whole).all(), cut
    assert refused > 0.8 * len(range(0, len(data), 7))
    expect(data[: len(data) // 2], Reason.IMAGE_TRUNCATED)


@pytest.mark.parametrize(("width", "height"), [(40000, 40000), (10000, 10000), (60000, 1000), (2**31 - 1, 1)])
def test_decode_of_bomb_is_refused_from_the_header(width: int, height: int) -> None:
    data = png_header(width, height)
    assert len(data) < 200
    assert expect(data, Reason.IMAGE_TOO_LARGE).what == f"{width} x {height} pixels, at most 50000000 in all"
    with pytest.raises(DataError):
        probe_image(data)


@pytest.mark.filterwarnings("error")
def test_limit_above_that_of_pillow_holds_and_leaves_that_of_pillow_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe_image(png_header(20_000, 10_000), ImageLimits(max_pixels=200_000_000)).width == 20_000
    assert expect(png_header(20_001, 10_000), Reason.IMAGE_TOO_LARGE, ImageLimits(max_pixels=200_000_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 11)
    for image_format in ("JPEG", "PNG"):
        assert decode_image(picture(5, 7, image_format)).shape == (5, 7, 3)
    assert Image.MAX_IMAGE_PIXELS == 11
    assert "more pixels than Pillow" in expect(picture(5, 7, "WEBP"), Reason.IMAGE_TOO_LARGE).what


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 64), (2, 201), (201, 2)])
def test_decode_of_degenerate_picture_is_refused(height: int, width: int) -> None:
    expect(picture(height, width), Reason.IMAGE_DEGENERATE)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 200), (200, 2)])
def test_decode_of_picture_at_the_limits_is_accepted(height: int, width: int) -> None:
    assert decode_image(picture(height, width)).shape == (height, width, 3)
    assert decode_image(picture(5, 7), ImageLimits(max_pixels=35)).shape == (5, 7, 3)
    expect(picture(5, 7), Reason.IMAGE_TOO_LARGE, ImageLimits(max_pixels=34))


FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF")
SEEDS = [picture(17, 19, image_format) for image_format in FORMATS]


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_decode_of_damaged_bytes_gives_pixels_or_a_data_error(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    pixels = pixels_or_reason(bytes(content), ImageLimits(max_pixels=10_000))
    assert pixels.startswith("image_") if isinstance(pixels, str) else pixels.ndim == 3


@pytest.mark.parametrize("image_format", FORMATS)
def test_decode_tells_formats_apart_by_content(image_format: str) -> None:
    lossless = {"quality": 100, "subsampling": "4:4:4"} if image_format == "AVIF" else {}
    pixels = decode_image(picture(37, 23, image_format, **lossless)).astype(int)
    assert np.abs(pixels - smooth_rgb(37, 23)).mean() < 20
    assert probe_image(picture(37, 23, image_format)) == ImageHeader(image_format, 23, 37)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("behind_the_pixels", [False, True])
@pytest.mark.parametrize(
    "chunks",
    [
        png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000))),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * 2_000_000)),
        png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(5_000_000))),
        b"".join(png_chunk(b"zTXt", b"k%d\0\0" % idx + zlib.compress(bytes(1_000_000))) for idx in range(71)),
    ],
)
def test_png_with_large_texts_or_profile_gives_its_pixels(chunks: bytes, behind_the_pixels: bool) -> None:
    plain = picture(19, 23)
    at = plain.index(b"IEND") - 4 if behind_the_pixels else plain.index(b"IDAT") - 4
    data = plain[:at] + chunks + plain[at:]
    assert (decode_image(data) == decode_image(plain)).all()
    assert probe_image(data) == probe_image(plain)


def test_damage_and_cuts_of_a_known_format_are_never_called_another_format() -> None:
    for image_format in ("JPEG", "PNG", "WEBP", "BMP", "AVIF"):
        data = picture(33, 41, image_format)
        for cut in range(32, 4 * len(data) // 5, 11):
            expect(data[:cut], Reason.IMAGE_TRUNCATED)
    png = bytearray(picture(33, 41))
    png[29] ^= 0xFF  # the checksum of IHDR
    expect(bytes(png), Reason.IMAGE_CORRUPT)
    jpeg = bytearray(picture(33, 41, "JPEG"))
    jpeg[jpeg.index(b"\xff\xc0") + 9] = 0xFE  # the number of components
    expect(bytes(jpeg), Reason.IMAGE_CORRUPT)
    for damaged in (
        b"\n" + picture(5, 7, "JPEG"),
        b"\xff\xd8\0" + picture(5, 7, "JPEG")[3:],
        b"\n" + picture(5, 7)[1:],
    ):
        expect(damaged, Reason.IMAGE_CORRUPT)
    expect(b"", Reason.IMAGE_TRUNCATED)
    jpeg = bytearray(picture(33, 41, "JPEG"))
    jpeg[jpeg.index(b"\xff\xdb")] = 0x12
    expect(bytes(jpeg), Reason.IMAGE_CORRUPT)
    jpeg = bytearray(picture(33, 41, "JPEG"))
    jpeg[jpeg.index(b"\xff\xc0") + 4] = 12  # bits per channel
    expect(bytes(jpeg), Reason.IMAGE_MODE_UNSUPPORTED)


def test_tiff_with_tiles_far_larger_than_its_pixels_is_refused() -> None:
    def tiff(tile: int) -> bytes:
        tags = {256: 7, 257: 5, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 200, 325: 99}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        pixels = zlib.compress(bytes(tile * tile)) if tile < 1000 else bytes(99)
        return (struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)).ljust(200, b"\0") + pixels.ljust(
            99
        )

    assert decode_image(tiff(16)).shape == (5, 7, 3)
    assert "60000 x 60000" in expect(tiff(60_000), Reason.IMAGE_TOO_LARGE).what
