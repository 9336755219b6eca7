import pytest
import torch

from model.fusion.image_slots import to_image_slots

A, B, C = (torch.full((3, 5, 7), float(value)) for value in (1, 2, 3))


def values(pixels: torch.Tensor) -> list[float]:
    return pixels[:, 0, 0, 0].tolist()


def test_four_dimensions_are_one_slot_per_image() -> None:
    slots = to_image_slots(torch.stack([A, B]))
    assert (values(slots.pixels), slots.images_per_slot) == ([1.0, 2.0], (1, 1))


def test_five_dimensions_are_slots_of_several_images() -> None:
    slots = to_image_slots(torch.stack([torch.stack([A, B]), torch.stack([C, A])]))
    assert (values(slots.pixels), slots.images_per_slot) == ([1.0, 2.0, 3.0, 1.0], (2, 2))


def test_list_mixes_single_images_and_groups() -> None:
    slots = to_image_slots([C, torch.stack([A, B])])
    assert (values(slots.pixels), slots.images_per_slot) == ([3.0, 1.0, 2.0], (1, 2))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 5, 7), r"4 or 5 dimensions, found \(3, 5, 7\)"),
        ([A, torch.zeros(3, 5, 11)], r"images\[1\] has shape \(3, 5, 11\).*images\[0\] is \(3, 5, 7\)"),
        ([torch.zeros(5, 7)], r"images\[0\] has shape \(5, 7\)"),
        ([], "empty list"),
    ],
)
def test_other_shapes_are_refused(images: torch.Tensor | list[torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_image_slots(images)
