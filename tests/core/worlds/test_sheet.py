"""The sheet of samples: every picture in its row and column, enlarged, and every prompt at its left."""

import numpy as np
import torch

from selfnpo_core.worlds.sheet import GAP, HEAD, SIDE, WORDS, lay_out

PLACE = SIDE + GAP


def arm(*tones: int) -> torch.Tensor:
    return torch.tensor(tones, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16)


def test_pictures_lie_in_the_row_of_their_prompt_and_the_column_of_their_arm():
    sheet = np.asarray(lay_out({"one": arm(10, 20, 30), "other": arm(110, 120, 130)}, ["a cat", "a bee"]))
    assert sheet.shape == (HEAD + 2 * PLACE, WORDS + 2 * PLACE, 3)
    for row in range(2):
        for column in range(2):
            top, left = HEAD + row * PLACE, WORDS + column * PLACE
            assert (sheet[top : top + SIDE, left : left + SIDE] == 100 * column + 10 * (row + 1)).all()
            assert (sheet[top : top + SIDE, left + SIDE : left + PLACE] == 255).all()
            assert (sheet[:HEAD, left : left + PLACE] < 255).any()  # the heading
        assert (sheet[top : top + SIDE, :WORDS] < 255).any()  # the prompt


def test_long_prompts_stay_left_of_the_pictures():
    words = "a picture of a large strawberry on a yellow ground with a small watermelon beside it"
    sheet = np.asarray(lay_out({"one": arm(0)[:0]}, [words]))
    assert (sheet[HEAD:, WORDS:] == 255).all()
    assert (sheet[HEAD:, :WORDS] < 255).any()
