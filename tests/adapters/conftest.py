"""What the tests of adapters share."""

from collections.abc import Iterator

import pytest

from tests.adapters.sandbox_parts import Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """A real sandbox, one for all tests of a module."""
    real = Sandbox()
    yield real
    real.close()
