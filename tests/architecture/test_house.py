"""The rules of the house that no linter knows."""

import ast
import fnmatch
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "gateway").rglob("*.py"))
LOCKS = sorted([*ROOT.glob("*.lock"), *ROOT.glob("models/*.lock")])

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# Another word for something that has a name already, or for nothing at all.
BANNED_WORDS = {
    "backend": "Engine",
    "bucket": "Variant or Split",
    "detector": "Monitor",
    "feedback": "Outcome",
    "handler": "what it handles",
    "helper": "what it does",
    "impl": "what it is",
    "impression": "Exposure",
    "manager": "Pool",
    "mirror": "Shadow",
    "runner": "Engine",
    "servable": "Version",
    "util": "what it does",
    "utils": "what it does",
}

# Modules that run what they read, unpack what they are sent, or copy every body.
BANNED_MODULES = {
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "pickle",
    "shelve",
    "starlette.middleware.base",
    "starlette.middleware.gzip",
    "tarfile",
    "zipfile",
}
BANNED_NAMES = {"BaseHTTPMiddleware", "GZipMiddleware", "compile", "eval", "exec"}
BANNED_CALLS = {"np.load", "numpy.load", "np.loadtxt", "numpy.loadtxt"}

TOP_LEVEL = {
    # Rooms.
    "docs",
    "gateway",
    "loadtests",
    "models",
    "tests",
    # Pages.
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    # What builds, checks and ships them.
    ".ci",
    ".dockerignore",
    ".editorconfig",
    ".gitattributes",
    ".gitignore",
    "Dockerfile",
    "Makefile",
    "pyproject.toml",
    "requirements-dev.lock",
    "requirements.lock",
}


def name_of(path: Path) -> str:
    """Path from the root of the repository, as a reader would write it."""
    return path.relative_to(ROOT).as_posix()


def is_generated(path: Path) -> bool:
    """Whether a compiler wrote the file, so that its shape is not ours."""
    return fnmatch.fnmatch(path.name, "*_pb2*.py")


OURS = [path for path in FILES if not is_generated(path)]
each_file = pytest.mark.parametrize("path", OURS, ids=name_of)


def parse(path: Path) -> ast.Module:
    """Syntax tree of a source file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def words(identifier: str) -> list[str]:
    """Lower-case words of an identifier in CamelCase or snake_case."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)]


def imported_modules(tree: ast.Module) -> Iterator[str]:
    """Dotted name of every module that is imported, and of every name taken from one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_within(module: str, package: str) -> bool:
    """Whether a dotted name is the package or lies in it."""
    return module == package or module.startswith(f"{package}.")


def dangers(tree: ast.Module) -> Iterator[str]:
    """Every use of something that may not be used here, as `line: what`."""
    for module in imported_modules(tree):
        if any(is_within(module, banned) for banned in BANNED_MODULES):
            yield f"import of {module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in BANNED_NAMES:
            yield f"{node.lineno}: {node.id}"
        elif isinstance(node, ast.alias) and node.name in BANNED_NAMES:
            yield f"{node.lineno}: {node.name}"
        elif isinstance(node, ast.Call):
            yield from call_dangers(node)


def call_dangers(call: ast.Call) -> Iterator[str]:
    """What a call does that may not be done here, as `line: what`."""
    if (name := ast.unparse(call.func)) in BANNED_CALLS:
        yield f"{call.lineno}: {name}"
    if any(keyword.arg == "allow_pickle" for keyword in call.keywords):
        yield f"{call.lineno}: allow_pickle"


def requirements(lock: Path) -> list[str]:
    """Logical lines of a lock file, comments left out."""
    text = re.sub(r"(?m)^\s*#.*\n", "", lock.read_text(encoding="utf-8"))
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def pins(lock: Path) -> dict[str, str]:
    """Version of each pinned distribution in a lock file."""
    split = (line.split()[0].partition("==") for line in requirements(lock))
    return {name: version for name, _, version in split}


@each_file
def test_files_are_short(path: Path) -> None:
    """A file fits in a reader's head: at most 400 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@each_file
def test_functions_are_short(path: Path) -> None:
    """A function fits on a screen: at most 60 lines, with its docstring."""
    too_long = [
        f"{node.lineno}: {node.name}"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert too_long == []


@each_file
def test_one_word_per_concept(path: Path) -> None:
    """No class and no module is named by a synonym of a word in the vocabulary."""
    classes = [node.name for node in ast.walk(parse(path)) if isinstance(node, ast.ClassDef)]
    synonyms = [
        f"{name}: say {BANNED_WORDS[word]}"
        for name in [path.stem, *classes]
        for word in words(name)
        if word in BANNED_WORDS
    ]
    assert synonyms == []


@each_file
def test_nothing_runs_or_unpacks_what_it_reads(path: Path) -> None:
    """No module that runs its input, unpacks archives or copies each body is used."""
    assert list(dangers(parse(path))) == []


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import pickle", id="import"),
        pytest.param("from tarfile import open", id="from-import"),
        pytest.param("from starlette.middleware import gzip", id="submodule"),
        pytest.param("x = eval('1')", id="eval"),
        pytest.param("x = np.load(path)", id="np.load"),
        pytest.param("x = read(path, allow_pickle=True)", id="allow_pickle"),
        pytest.param("from starlette.x import GZipMiddleware", id="name"),
    ],
)
def test_each_danger_is_seen(source: str) -> None:
    """The rule above sees each way in, so that its silence means something."""
    assert len(list(dangers(ast.parse(source)))) >= 1


def test_targeting_knows_no_regular_expressions() -> None:
    """Conditions cannot be made slow by their author: targeting never imports `re`."""
    core = ROOT / "gateway" / "core"
    pages = [*core.glob("targeting*.py"), *core.glob("targeting*/**/*.py")]
    assert pages != []
    users = [name_of(page) for page in pages if "re" in imported_modules(parse(page))]
    assert users == []


def test_the_front_yard_is_tidy() -> None:
    """Nothing lies at the top level but the rooms and pages that the house has."""
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    ignored = [line.strip("/") for line in lines if line and not line.startswith("#")]
    strangers = [
        entry.name
        for entry in ROOT.iterdir()
        if entry.name not in TOP_LEVEL | {".git"}
        and not any(fnmatch.fnmatch(entry.name, pattern) for pattern in ignored)
    ]
    assert strangers == []


@pytest.mark.parametrize("lock", LOCKS, ids=name_of)
def test_every_requirement_is_pinned_and_hashed(lock: Path) -> None:
    """A lock names an exact version and a digest of each distribution."""
    pattern = re.compile(r"[a-z0-9.-]+==\S+(\s+;.*?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*")
    loose = [line[:60] for line in requirements(lock) if not pattern.fullmatch(line)]
    assert loose == []


@pytest.mark.parametrize("lock", LOCKS, ids=name_of)
def test_a_lock_names_no_place(lock: Path) -> None:
    """A lock holds no address and no path, so that any index with the same files serves."""
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text
    assert re.findall(r"(?m)^(?:-|\S+ @ ).*", text) == []
    assert re.findall(r"(?m)[\s=](?:/|file:/)\S*", text) == []


def test_tests_run_on_what_is_shipped() -> None:
    """The development lock holds every run-time pin, unchanged."""
    run_time = pins(ROOT / "requirements.lock")
    development = pins(ROOT / "requirements-dev.lock")
    assert len(run_time) > 0
    assert {name: development.get(name) for name in run_time} == run_time


def test_every_dependency_is_locked() -> None:
    """What pyproject.toml asks for, the locks pin."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        pyproject = tomllib.load(file)
    project = pyproject["project"]
    run_time = {*project["dependencies"], *pyproject["build-system"]["requires"]}
    names = {re.split(r"[<>=!~ \[;]", line)[0] for line in run_time}
    assert names - pins(ROOT / "requirements.lock").keys() == set()
    extra = {re.split(r"[<>=!~ \[;]", line)[0] for line in project["optional-dependencies"]["dev"]}
    assert extra - pins(ROOT / "requirements-dev.lock").keys() == set()


def test_one_version_everywhere() -> None:
    """The package, its metadata and the top of the changelog name the same version."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    assert version == gateway.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"(?m)^## \[?(\d[^\]\s]*)", changelog)
    first = re.search(r"(?m)^## \[?([^\]\s]+)", changelog)
    assert first is not None
    assert first[1] in {"Unreleased", version}
    assert released[:1] in ([], [version])
