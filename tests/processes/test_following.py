"""What following an MLflow registry needs of the settings."""

from pathlib import Path
from typing import Any

import pytest

from gateway.core.errors import InvalidRequest
from gateway.processes.following import sources_of
from gateway.settings import load


def test_versions_from_elsewhere_need_a_model_store_in_a_folder() -> None:
    """An address of an object store is refused, and not taken for the name of a folder."""
    there = {"MLFLOW_URL": "http://127.0.0.1:5000", "MODEL_STORE": "s3://models/here"}
    settings = load({f"TILTYARD_{name}": value for name, value in there.items()})
    stores: Any = None
    with pytest.raises(InvalidRequest, match="needs a model store in a folder"):
        sources_of(settings, stores)
    assert not Path("s3:").exists()
