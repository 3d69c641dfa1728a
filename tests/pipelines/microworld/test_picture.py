"""The picture head, against means of blocks taken one by one."""

from __future__ import annotations

import torch

from sum_factory.pipelines.microworld.picture import CELL, CELLS, PictureHead


def test_error_is_that_of_the_mean_colours_of_cells_in_the_token_that_holds_them() -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 32, 48, generator=random)
    embeddings = torch.randn(2, 5, 2, 3, generator=random)
    head = PictureHead(5)
    drawn = head.colours(embeddings)
    squares = []
    for b in range(2):
        for colour in range(3):
            for y in range(32 // CELL):
                for x in range(48 // CELL):
                    cell = images[b, colour, y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL]
                    channel = colour * CELLS**2 + (y % CELLS) * CELLS + x % CELLS
                    squares.append((drawn[b, channel, y // CELLS, x // CELLS] - cell.mean()) ** 2)
    assert torch.isclose(head(embeddings, images), torch.stack(squares).mean())
