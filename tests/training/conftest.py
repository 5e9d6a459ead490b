"""Images and weights that several files validate."""

from pathlib import Path

import pytest
from support.validated import COUNTS, CPU, image_folder, network, recipe, saved

from ltmsearch.training.validation import ValidationRecord, validate_recipe


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("photos"), COUNTS)


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> tuple[Path, ValidationRecord]:
    """Weights of a net, and its record with all defaults."""
    checkpoint = saved(network(recipe()), tmp_path_factory.mktemp("weights") / "w")
    return checkpoint, validate_recipe(recipe(), checkpoint=checkpoint, data_dir=photos, **CPU)
