"""The pages on the command line and the admin API list what there is, and nothing else."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from gateway.adapters.redis_keys import keys_of
from gateway.core.principals import ALLOWED, Role
from gateway.doors.cli.app import create_cli
from gateway.doors.http.admin_routes import OPERATIONS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
BELOW = "/admin/v1/"
_FRONT: Any = None
TREE: Any = get_command(create_cli(_FRONT))


def rows(page: str, heading: str) -> Iterator[list[str]]:
    """The rows of the table that begins with this heading, a list of cells each."""
    lines = (DOCS / page).read_text().splitlines()
    start = lines.index(heading)
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def commands(command: Any, name: str = "") -> Iterator[str]:
    """The full names of all commands below one."""
    if not hasattr(command, "commands"):
        yield name
        return
    for word, below in command.commands.items():
        yield from commands(below, f"{name} {word}".strip())


def command_of(shown: str) -> str:
    """The command's name in a usage such as `gate put NAME FILE`."""
    words = shown.split()
    stop = next((i for i, word in enumerate(words) if not re.fullmatch("[a-z-]+", word)), None)
    return " ".join(word for word in words[:stop] if not word.startswith("-"))


def test_every_command_is_on_its_page() -> None:
    """`docs/cli.md` has the commands that `tiltyard --help` has, each with a row."""
    there = set(commands(TREE))
    shown = {
        command_of(usage)
        for first, *_ in rows("cli.md", "| command | what it does |")
        for usage in re.findall("`([^`]+)`", first)
    }
    assert shown == there


def operation_of(shown: str, before: tuple[str, str]) -> tuple[str, str]:
    """Method and path of what a row shows; what it leaves out is as in the one before.

    `PUT` alone has the path of the one before, `.../unload` its method and all but the last part
    of its path.
    """
    method, path = before
    word, _, rest = shown.partition(" ")
    if word.isupper():
        method, path = word, rest or path
    else:
        path = word
    parent, _, _ = before[1].rpartition("/")
    return method, path.replace("...", parent).partition("?")[0]


def test_every_operation_is_on_its_page() -> None:
    """`docs/admin-api.md` has the operations of the table that routes requests."""
    shown: list[tuple[str, str]] = []
    for first, *_ in rows("admin-api.md", "| method and path | what |"):
        for one in re.findall("`([^`]+)`", first):
            shown.append(operation_of(one, shown[-1] if shown else ("", "")))
    there = {
        (row.method, row.path.removeprefix(BELOW))
        for row in OPERATIONS
        if row.path.startswith(BELOW)
    }
    assert {(method, re.sub("{[a-z]+}", "{}", path)) for method, path in shown} == {
        (method, re.sub("{[a-z]+}", "{}", path)) for method, path in there
    }


def test_the_table_of_actions_is_the_one_that_decides() -> None:
    """`docs/access.md` says which role may do what as `ALLOWED` does."""
    roles = [Role.VIEWER, Role.EXPERIMENTER, Role.APPROVER, Role.DEPLOYER, Role.ADMIN]
    roles.append(Role.EMERGENCY)
    heading = "| action | what | " + " | ".join(roles) + " |"
    shown = {
        cells[0].strip("`"): {role for role, cell in zip(roles, cells[2:], strict=True) if cell}
        for cells in rows("access.md", heading)
    }
    assert shown == {action: set(allowed) for action, allowed in ALLOWED.items()}


def test_every_key_is_in_the_table_of_keys() -> None:
    """The head of `redis_keys.py` lists each key that it can name."""
    keys = keys_of("n")
    study = keys.study("<id>")
    named = {getattr(one, name) for one in (keys, study) for name in one.__struct_fields__}
    named |= {keys.process("<name>"), keys.dead_letters("<name>")}
    page = (ROOT / "gateway" / "adapters" / "redis_keys.py").read_text()
    listed = set(re.findall(r"(?m)^\{ns\}:(\S+) ", page))
    assert {name.removeprefix("{n}:") for name in named} == listed


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Links to files exist, and links to headings find one."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"(?m)^#+ (.+)$", target.read_text())
            anchors = {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in titles}
            assert heading in anchors, link


PAGES = [ROOT / "README.md", ROOT / "models" / "README.md", *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_every_command_that_is_shown_exists(page: Path) -> None:
    """What pages tell people to type names a command, and options that it has."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"(?m)^(?:\$ )?(?:\.venv/bin/)?tiltyard (.*)$", text)
    for line in [*lines, *re.findall(r"`tiltyard ([^`]+)`", text)]:
        command = TREE
        words = shlex.split(line, comments=True)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        has = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        has |= {"--help", "--version"}
        is_whole = not hasattr(command, "commands") or not words or words[0].startswith("-")
        assert is_whole, line
        assert {word for word in words if re.match("--?[a-z]", word)} <= has, line
