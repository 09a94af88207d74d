"""Boxes from an image to a map and back."""

import torch

from mxa.layers.grid import Grid, from_image, to_image


def test_there_and_back():
    grid = Grid((6, 5), (16.0, 20.0), (0.0, 9.5), (96, 100))
    torch.manual_seed(0)
    low = 0.2 + torch.rand(50, 2) * 0.3
    boxes = torch.cat([low, low + 0.3], dim=1)
    torch.testing.assert_close(to_image(from_image(boxes, grid), grid), boxes)
    cell = torch.tensor([[2 / 5, 1 / 6, 3 / 5, 2 / 6]])  # cell (1, 2): its centre is pixel 0 + 16, 9.5 + 2 * 20
    image = to_image(cell, grid)[0]
    centre = (image[:2] + image[2:]) / 2 * torch.tensor([100, 96]) - 0.5
    torch.testing.assert_close(centre, torch.tensor([49.5, 16.0]))
    assert from_image(torch.tensor([0.0, 0.0, 1.0, 1.0]), grid).tolist() == [0.0, (0.5 - 0.5 / 16) / 6, 1.0, 1.0]
