"""The README and the rules page do what they say: their blocks are run, in their order."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.core.endpoints import Endpoint, Rule, Shadow, check_endpoint
from gateway.core.experiment_checks import check_experiment
from gateway.core.experiments import Experiment
from gateway.doors.documents import read_strictly
from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import ROOT, Gateway, eventually, free_port
from tests.e2e.valkeys import ValkeyProcess

README = (ROOT / "README.md").read_text()
RULES = (ROOT / "docs" / "rules.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_it_is_short_enough_to_read() -> None:
    """The README stays under 250 lines."""
    assert len(README.splitlines()) < 250


def test_every_make_target_that_it_names_exists() -> None:
    """What the README tells people to make, the Makefile has."""
    named = set(re.findall(r"make ([a-z-]+)", README))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"run", "demo", "test"} <= named
    assert named <= targets


def test_every_file_that_it_names_exists() -> None:
    """Links and paths lead somewhere."""
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


@pytest.mark.parametrize("document", blocks(README, "json") + blocks(RULES, "json"))
def test_every_document_shown_is_a_good_one(document: str) -> None:
    """Endpoint documents and rules in the texts are taken as they stand."""
    kind: type[Endpoint | Rule] = Endpoint if '"schema"' in document else Rule
    read = read_strictly(document.encode(), kind)
    endpoint = read if isinstance(read, Endpoint) else Endpoint(schema=1, model="m", rules=(read,))
    check_endpoint("shown", endpoint)


def test_every_shadow_shown_is_a_good_one() -> None:
    """The shadow in the text of the rules page is taken as it stands."""
    shown = re.findall(r"^`(\{\"name\".*\})`$", RULES, re.MULTILINE)
    assert len(shown) == 1
    read_strictly(shown[0].encode(), Shadow)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A store that the README's redis-cli line can speak to."""
    server = ValkeyProcess(tmp_path / "valkey", free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A model store of the test's own: the README registers a version."""
    return shutil.copytree(ROOT / "models", tmp_path / "models")


@pytest.mark.e2e
@pytest.mark.timeout(240)
def test_its_shell_blocks_run(
    make_gateway: MakeGateway, valkey: ValkeyProcess, models: Path
) -> None:
    """Every shell line succeeds, and the answer shown is the one that comes."""
    env = {"TILTYARD_REDIS_URL": valkey.url, "TILTYARD_INSPECTION_MODE": "full"}
    gateway = make_gateway(models=models, env=env)
    lines = [line for block in blocks(README, "sh") for line in block.splitlines() if line]
    assert len(lines) >= 6

    printed = [run(gateway, line) for line in lines]

    assert '"model_version":"1"' in printed[0]
    for header in ("x-model-version: 1", "x-variant: default", "x-prediction-id: "):
        assert header in printed[0]
    assert gateway.told("GET", "/admin/v1/models/flight-delay")["aliases"] == {"champion": 1}

    shown, after = [run_script(gateway, script) for script in blocks(README, "bash")]

    assert shown.count('{"accepted":1,"refused":[]}') == 50
    assert "new-model on flight-delay is running: ramp, step 0" in shown
    assert "All of them came out as they are recorded." in after

    (tour,) = [one for one in blocks(README, "console") if "$ .venv" in one]
    for command, answer in answered(tour):
        said = run_command(gateway, command)
        for line in answer:
            assert re.search(re.escape(line).replace("…", ".*"), said), said
    assert (models / "flight-delay" / "3" / "model.onnx").exists()

    (message,) = re.findall(r"^\$ redis-cli (XADD .*)$", README, re.MULTILINE)
    words = shlex.split(message.replace("$TOKEN", gateway.token))
    client: Any = redis.Redis.from_url(valkey.url, decode_responses=True)
    client.execute_command(*words)
    champion = {"champion": 2}
    model = "/admin/v1/models/flight-delay"
    assert eventually(lambda: gateway.told("GET", model)["aliases"] == champion)


def run(gateway: Gateway, line: str) -> str:
    """Run a line of the README against this gateway; what it printed."""
    return ran(gateway, shlex.split(here(gateway, line)))


def run_script(gateway: Gateway, script: str) -> str:
    """Run a whole block of the README in a shell, until a command fails; what it printed."""
    words = here(gateway, script).replace(" report.html", f" {gateway.state / 'report.html'}")
    return ran(gateway, ["bash", "-e", "-c", words])


def answered(block: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that it is shown to print."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def run_command(gateway: Gateway, line: str) -> str:
    """Run a command of the tour; what it printed. Only one that a gate refuses may fail."""
    process = subprocess.run(
        ["bash", "-c", here(gateway, line)],
        cwd=ROOT,
        env={**gateway.environ(), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    printed = process.stdout + process.stderr
    assert process.returncode == (5 if "A gate is closed" in printed else 0), printed
    return printed


def here(gateway: Gateway, text: str) -> str:
    """The text with this gateway in place of the one that it speaks of."""
    text = text.replace(".venv/bin/tiltyard", f"{sys.executable} -m gateway")
    text = text.replace("http://localhost:8080", gateway.url)
    text = text.replace("localhost:8080", gateway.url)
    return text.replace(".tiltyard/", f"{gateway.state}/")


def ran(gateway: Gateway, words: list[str]) -> str:
    """What a command printed; it must succeed."""
    process = subprocess.run(
        words,
        cwd=ROOT,
        env=gateway.environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, f"{words}\n{process.stdout}{process.stderr}"
    return process.stdout


def test_the_example_file_is_the_one_it_describes() -> None:
    """`docs/examples/ab.json` is a good document with a 90:10 split and a shadow."""
    document = json.loads((ROOT / "docs" / "examples" / "ab.json").read_text())
    weights = [variant["weight"] for variant in document["rules"][0]["split"]["variants"]]
    assert weights == [9_000, 1_000]
    assert document["shadows"][0]["share"] == 5_000


def test_the_experiment_shown_is_the_example() -> None:
    """The page on experiments shows `docs/examples/ramp.json`, which is taken as it stands."""
    example = (ROOT / "docs" / "examples" / "ramp.json").read_text()
    shown = blocks((ROOT / "docs" / "experiments.md").read_text(), "json")
    assert example in shown
    check_experiment("shown", read_strictly(example.encode(), Experiment))
