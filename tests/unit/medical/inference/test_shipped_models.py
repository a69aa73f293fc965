"""The model packages in the repository are whole, small, and say what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from secure_media_processor.medical.inference.packages import read_package
from secure_media_processor.medical.inference.vectors import verify_vector
from secure_media_processor.medical.unet.engines import choose

MODELS = Path(__file__).parents[4] / "models"
PACKAGES = sorted(path.parent for path in MODELS.glob("*/model.json"))


def test_there_is_one() -> None:
    assert [path.name for path in PACKAGES] == ["hippocampus"]


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.name)
def test_a_shipped_model_computes_what_it_did_and_says_what_it_is(path: Path) -> None:
    package = read_package(path)
    card = package.card
    assert sum(map(len, package.files.values())) < 5_000_000
    assert card.licence == "CC-BY-SA-4.0"
    assert "not for diagnosis" in card.limitations
    assert card.metrics is not None
    found = verify_vector(package, choose(package, engine="torch", precision="float32", device="cpu"))
    assert found is not None
    assert found.passed
    # What the page says is what the package says.
    page = (MODELS / "README.md").read_text("utf-8")
    for label, values in card.metrics.values.items():
        dice = values["dice"]
        assert f"{dice.mean:.3f} ({dice.low:.3f}-{dice.high:.3f})" in page, label
