"""The Dockerfile, held against the tree it copies, the package it builds and the settings it sets.

No container engine is needed: the file is parsed, and the line that builds the package is run.
"""

import json
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import pytest

from gateway import settings

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One line of a Dockerfile."""

    stage: str
    verb: str
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments, split as a shell or an exec form does."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return shlex.split(self.text)


def parse(text: str) -> list[Instruction]:
    """Instructions in order; a stage without a name is called `final`."""
    stage = ""
    instructions = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        verb, _, arguments = line.strip().partition(" ")
        if verb == "FROM":
            _, as_name, name = arguments.partition(" AS ")
            stage = name if as_name else "final"
        instructions.append(Instruction(stage=stage, verb=verb, text=arguments.strip()))
    return instructions


INSTRUCTIONS = parse((ROOT / "Dockerfile").read_text(encoding="utf-8"))


def only(verb: str, *, stage: str = "final") -> Instruction:
    """The one instruction of its kind in a stage."""
    (found,) = [line for line in INSTRUCTIONS if line.verb == verb and line.stage == stage]
    return found


def copies() -> list[str]:
    """What is copied from the tree, as written."""
    lines = [line.words for line in INSTRUCTIONS if line.verb == "COPY"]
    return [source for words in lines if not words[0].startswith("--") for source in words[:-1]]


def environment() -> dict[str, str]:
    """What the final stage sets."""
    lines = [line for line in INSTRUCTIONS if line.verb == "ENV" and line.stage == "final"]
    return dict(line.text.split("=", 1) for line in lines)


def test_builder_then_final() -> None:
    """A builder stage makes the environment and an unnamed last stage serves."""
    assert [line.stage for line in INSTRUCTIONS if line.verb == "FROM"] == ["builder", "final"]


@pytest.mark.parametrize("source", copies())
def test_what_is_copied_exists(source: str) -> None:
    """Each COPY source is in the tree and gets past .dockerignore."""
    assert (ROOT / source).exists()
    assert f"!{source}" in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def test_dependencies_are_the_locked_ones() -> None:
    """The image installs the run-time lock, digests and all, and nothing else from an index."""
    installs = [
        line.words[1:] for line in INSTRUCTIONS if line.verb == "RUN" and "pip" in line.words[0]
    ]
    reaching_out = [words for words in installs if not {"--no-index", "--no-deps"} & {*words}]
    assert reaching_out == [
        ["install", "--no-cache-dir", "--require-hashes", "-r", "requirements.lock"]
    ]


def test_command_is_the_installed_script() -> None:
    """CMD runs the console script that the package declares, whose module exists."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    script, *arguments = only("CMD").words
    module, _, function = scripts[script].partition(":")
    assert find_spec(module) is not None
    assert function == "main"
    assert arguments == ["serve"]


def test_environment_is_made_of_settings() -> None:
    """Every variable is a setting; they make a server that is reached from outside."""
    named = {k: v for k, v in environment().items() if k.startswith("TILTYARD_")}
    loaded = settings.load({**named, "TILTYARD_REDIS_URL": "redis://redis:6379/0"})
    assert loaded.http.host == "0.0.0.0"
    assert loaded.redis.embedded is False
    assert loaded.admin.host == "127.0.0.1"
    assert environment()["PATH"].startswith("/venv/bin:")


def test_state_outlives_the_container() -> None:
    """The state folder is a volume, owned by the user that serves, who is not root."""
    state = environment()["TILTYARD_STATE_DIR"]
    assert only("VOLUME").text == state
    user = only("USER").text
    assert user != "root"
    runs = [line.words for line in INSTRUCTIONS if line.verb == "RUN" and line.stage == "final"]
    assert [words[-1] for words in runs if words[0] == "useradd"] == [user]
    (made,) = [words for words in runs if words[-1] == state]
    assert made[made.index("--owner") + 1] == user


def test_models_are_where_the_store_is_looked_for() -> None:
    """The sample models are copied into the model store that the settings name."""
    store = PurePosixPath(environment()["TILTYARD_MODEL_STORE"])
    assert store == PurePosixPath(only("WORKDIR").text) / "models"


def test_ports_are_the_defaults() -> None:
    """What is exposed is what the settings listen on by default."""
    loaded = settings.load({})
    exposed = [int(port) for port in only("EXPOSE").words]
    assert exposed == [loaded.http.port, loaded.grpc.port, loaded.admin.port]


def test_health_check_asks_whether_the_server_lives() -> None:
    """The health check is valid Python and asks the inference port for liveness."""
    _, _, command = only("HEALTHCHECK").text.partition(" CMD ")
    python, flag, code = json.loads(command)
    assert [python, flag] == ["python", "-c"]
    compile(code, "HEALTHCHECK", "exec")
    assert f"http://127.0.0.1:{settings.load({}).http.port}/v2/health/live" in code


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_wheel_holds_every_source_file(tmp_path: Path) -> None:
    """The builder's own line makes a wheel with each file of the package and its command."""
    (line,) = [i for i in INSTRUCTIONS if i.verb == "RUN" and "wheel" in i.words]
    for source in copies():
        if (ROOT / source).is_file():
            shutil.copy(ROOT / source, tmp_path)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "gateway", tmp_path / "gateway", ignore=ignore)
    expected = {
        path.relative_to(tmp_path).as_posix()
        for path in (tmp_path / "gateway").rglob("*")
        if path.is_file()
    }
    words = {"/venv/bin/pip": f"{sys.executable} -m pip", "/wheels": str(tmp_path / "wheels")}
    command = shlex.split(" ".join(words.get(word, word) for word in line.words))
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "wheels").glob("tiltyard-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "tiltyard = gateway.__main__:main" in archive.read(entry).decode()
    assert expected - names == set()
