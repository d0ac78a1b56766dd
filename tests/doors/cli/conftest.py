"""What the tests of the commands begin with."""

from pathlib import Path

import msgspec
import pytest

from tests.doors.cli.desk import Desk
from tests.doors.http.admin_world import SPLIT


@pytest.fixture
def desk() -> Desk:
    """A fresh command line over a fresh world."""
    return Desk()


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A file with an endpoint's document."""
    file = tmp_path / "rules.json"
    file.write_bytes(msgspec.json.encode(SPLIT))
    return file
