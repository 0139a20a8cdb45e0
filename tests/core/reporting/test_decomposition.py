"""What `inspect --keep` left in a run is shown, of these very weights only."""

import json
from pathlib import Path
from typing import Any

import pytest

from selfnpo_core.decomposition import Decomposition
from selfnpo_core.errors import InputError
from selfnpo_core.reporting.decomposition import DECOMPOSITION, kept_decomposition
from selfnpo_core.system.files import file_sha256
from selfnpo_core.weights.dissection import Dissection


def level(kappa: float) -> Decomposition:
    return Decomposition(size=0.25, kappa=kappa, k=0.5, contrast_share=0.1, scale_share=0.7, rest_share=0.3)


@pytest.fixture
def npo(tmp_path: Path) -> Path:
    found = Dissection(
        guidance_scale=3.0,
        beta=0.5,
        trajectories=4,
        by_timestep=((901.0, level(-0.2)), (1.0, level(0.1))),
        overall=level(0.0),
    )
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    kept = {"schema": 1, "npo_sha256": file_sha256(file), **found.as_facts()}
    (tmp_path / DECOMPOSITION).write_text(json.dumps(kept), encoding="utf-8")
    return file


def change(folder: Path, **values: Any) -> None:
    file = folder / DECOMPOSITION
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def test_it_is_told_and_plotted(npo: Path) -> None:
    found = kept_decomposition(npo.parent, npo)
    assert found is not None
    assert found.told.startswith("What the weights change in the null branch is a guidance scale of 2.00 in disguise")
    assert "On 4 guided trajectories of the base, guidance scale 3, beta 0.5." in found.told
    _, rows = found.table()
    assert list(rows[0]) == ["901", "25.0%", "-0.200", "+0.500", "30%"]
    plots = found.plots()
    assert len(set(plots)) == 3
    assert all(plot.startswith("<svg") for plot in plots)
    assert "κ, contrast" in plots[1]


def test_it_is_of_these_very_weights(npo: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert kept_decomposition(npo.parent, None) is None
    npo.write_bytes(b"abd")
    assert kept_decomposition(npo.parent, npo) is None
    assert "is not of the weights" in caplog.text
    (npo.parent / DECOMPOSITION).unlink()
    assert kept_decomposition(npo.parent, npo) is None


def test_a_damaged_file_is_refused(npo: Path) -> None:
    change(npo.parent, by_timestep="?")
    with pytest.raises(InputError, match=r"by_timestep: .*: have `inspect --keep` write it anew"):
        kept_decomposition(npo.parent, npo)
