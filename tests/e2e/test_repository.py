"""A model store with a broken version beside a good one."""

import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import ROOT, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]


def test_a_refused_version_is_shown_with_its_reason(
    make_gateway: MakeGateway, tmp_path: Path
) -> None:
    """What lies in the store and cannot be served is named by every table, the rest serves."""
    store = tmp_path / "models"
    shutil.copytree(ROOT / "models" / "digits", store / "digits")
    broken = store / "digits" / "3"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"no model")
    gateway = make_gateway(models=store)

    def refusals(*words: str) -> list[str]:
        shown = gateway.run_cli(*words).splitlines()
        return [line for line in shown if "Refused: digits/3: " in line]

    assert eventually(lambda: refusals("status"))
    assert len(refusals("models")) == 1
    assert len(refusals("models", "show", "digits")) == 1
    assert gateway.is_ready()
