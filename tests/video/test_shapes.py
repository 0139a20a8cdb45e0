"""From frames and pixels to latents."""

from dataclasses import replace

import pytest

from selfnpo_core.errors import InputError
from selfnpo_video.shapes import ClipSize, Compression


def test_impossible_sizes_are_refused_with_the_nearest():
    compression = Compression(time=4, space=8, patch=2, patch_time=1, channels=16)
    assert compression.latent_shape(ClipSize(frames=49, height=480, width=720)) == (13, 16, 60, 90)
    with pytest.raises(InputError, match=r"nearest is 49×480×720"):
        compression.latent_shape(ClipSize(frames=48, height=481, width=725))
    with pytest.raises(InputError, match=r"nearest is (49|57)×480×720"):  # 14 latent frames would be 56 pictures
        compression.latent_shape(ClipSize(frames=53, height=480, width=720))
    padded = Compression(time=4, space=8, patch=2, patch_time=2, channels=16)
    assert padded.latent_shape(ClipSize(frames=81, height=768, width=1360)) == (22, 16, 96, 170)
    limited = replace(padded, largest=(2400, 2400))
    assert limited.latent_shape(ClipSize(frames=9, height=2400, width=2400))[2:] == (300, 300)
    with pytest.raises(InputError, match=r"at most 2400 and 2400; the nearest is 9×2400×2400"):
        limited.latent_shape(ClipSize(frames=9, height=2416, width=4000))
    fixed = Compression(
        time=4, space=8, patch=2, patch_time=1, channels=16, fixed=ClipSize(frames=49, height=480, width=720)
    )
    with pytest.raises(InputError, match="49×480×720"):
        fixed.check(ClipSize(frames=49, height=256, width=256))
