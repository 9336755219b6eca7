"""Pictures show what the scene says, at the size asked for, and survive encoding."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.tools.demo.drawing import draw_scene, encode_picture
from pipeline.tools.demo.scenes import COLORS, SHAPES, Scene, Thing


def one_thing(shape: str, color: str = "blue", width: float = 6, height: float = 4) -> Scene:
    thing = Thing(color, shape, row=2, column=4, x=4.4, y=2.6, radius=0.7, angle=5.0, rgb=COLORS[color])
    return Scene((thing,), width, height, background=(230, 230, 230), texture_seed=3)


@pytest.mark.parametrize("shape", SHAPES)
def test_draw_scene_puts_the_color_at_the_center_of_the_thing(shape: str) -> None:
    pixels = np.asarray(draw_scene(one_thing(shape), 17)).astype(int)
    assert pixels.shape == (4 * 17, 6 * 17, 3)
    row, column = round((2.6 - 1) * 17), round(4.4 * 17)  # one row of cells is padding that preprocessing will add
    assert np.abs(pixels[row, column] - COLORS["blue"]).max() < 50
    assert np.abs(pixels[5, 5] - 230).max() < 50


def test_draw_scene_tells_shapes_apart() -> None:
    areas = {}
    for shape in SHAPES:
        pixels = np.asarray(draw_scene(one_thing(shape), 29)).astype(int)
        areas[shape] = int((pixels[..., 2] - pixels[..., 0] > 60).sum())
    assert len(set(areas.values())) == len(SHAPES)
    assert areas["square"] > areas["triangle"] > areas["star"] > 200


def test_draw_scene_is_reproducible_and_its_texture_varies() -> None:
    scene = one_thing("star")
    first, again = (np.asarray(draw_scene(scene, 13)) for _ in range(2))
    other = np.asarray(draw_scene(replace(scene, texture_seed=5), 13))
    assert (first == again).all()
    assert (first != other).any()


def test_draw_scene_with_unknown_shape_names_it() -> None:
    with pytest.raises(ValueError, match="no drawing for shape 'hexagon'"):
        draw_scene(one_thing("hexagon"), 13)


def test_encode_picture_keeps_png_exactly_and_jpeg_nearly() -> None:
    picture = draw_scene(one_thing("circle"), 19)
    png, jpeg = (Image.open(io.BytesIO(encode_picture(picture, kind))) for kind in ("png", "jpg"))
    assert (png.format, jpeg.format) == ("PNG", "JPEG")
    assert (np.asarray(png) == np.asarray(picture)).all()
    assert np.abs(np.asarray(jpeg).astype(int) - np.asarray(picture)).mean() < 6
