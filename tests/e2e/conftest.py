"""Gateways for the stories."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.gateways import ROOT, Gateway

MakeGateway = Callable[..., Gateway]


@pytest.fixture
def make_gateway(tmp_path: Path) -> Iterator[MakeGateway]:
    """Start as many gateways as a story needs; all of them are gone when it ends."""
    made: list[Gateway] = []

    def make(
        *,
        models: Path = ROOT / "models",
        env: Mapping[str, str] | None = None,
        state: Path | None = None,
        start: bool = True,
        workers: int = 0,
    ) -> Gateway:
        place = state or tmp_path / f"g{len(made)}"
        gateway = Gateway(place, models, env or {}, workers=workers)
        made.append(gateway)
        return gateway.start() if start else gateway

    yield make
    for gateway in made:
        gateway.close()
