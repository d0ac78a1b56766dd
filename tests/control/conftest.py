"""The control plane's parts on fakes at the ports."""

import os
from pathlib import Path

import pytest

from gateway.adapters.disk import StateFolder
from gateway.adapters.folder import FolderStore
from gateway.control.reception import Reception, ReceptionParts
from gateway.control.registry import Registry
from tests.control.building import describe
from tests.fakes import (
    CountingEntropy,
    FakeDataPlane,
    ManualClock,
    MemoryGovernance,
    MemoryStore,
)


@pytest.fixture
def store() -> MemoryStore:
    """An empty store."""
    return MemoryStore()


@pytest.fixture
def clock() -> ManualClock:
    """Time that stands still."""
    return ManualClock()


@pytest.fixture
def registry(store: MemoryStore, clock: ManualClock) -> Registry:
    """A registry on the store."""
    return Registry(store, now=clock, entropy=CountingEntropy())


@pytest.fixture
def data_plane() -> FakeDataPlane:
    """A data plane that records."""
    return FakeDataPlane()


@pytest.fixture
def disk(tmp_path: Path) -> StateFolder:
    """The state folder."""
    return StateFolder(tmp_path / "state", entropy=os.urandom, admin_token="admin")


@pytest.fixture
def models(tmp_path: Path, clock: ManualClock) -> FolderStore:
    """The model store, `models` beside the state folder."""
    return FolderStore(
        tmp_path / "models", tmp_path / "state" / "cache", describe=describe, now=clock
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The model store's folder, empty."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def governance() -> MemoryGovernance:
    """An empty store of reports."""
    return MemoryGovernance()


@pytest.fixture
def reception(  # noqa: PLR0917 - fixtures
    store: MemoryStore,
    governance: MemoryGovernance,
    models: FolderStore,
    registry: Registry,
    data_plane: FakeDataPlane,
    clock: ManualClock,
) -> Reception:
    """A reception that inspects nothing."""
    return Reception(
        ReceptionParts(
            store=store,
            governance=governance,
            inspector=None,
            models=models,
            registry=registry,
            data_plane=data_plane,
            now=clock,
        )
    )
