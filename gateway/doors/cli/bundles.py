"""Commands on bundles: apply, diff, export, schema."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from gateway.core.bundles import Bundle
from gateway.core.errors import InvalidRequest, excerpt
from gateway.doors.bundle_files import FORMATS, Source, find_files, merged
from gateway.doors.bundle_texts import Format, write_document
from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.endpoints import read_file
from gateway.doors.cli.front import PENDING, AdminUrl, AsJson, Reason, TokenFile
from gateway.doors.cli.output import plain, say, show_json
from gateway.doors.schemas import KINDS, schema_text

TIMEOUT_S: Final = 120.0
MAX_SHOWN: Final = 200
STDIN: Final = "-"

Files = Annotated[
    list[str],
    typer.Option(
        "--file", "-f", help="YAML, TOML or JSON, a folder of such files, or - for stdin."
    ),
]
Prune = Annotated[
    bool,
    typer.Option("--prune", help="Delete what the files do not name, of the kinds that they name."),
]


def apply(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    files: Files,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; say what would change.")
    ] = False,
    prune: Prune = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    allow_signature_change: Annotated[
        bool, typer.Option(help="Serve versions that differ in their tensors.")
    ] = False,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Make what files say stand, all of it in one commit or nothing."""
    bundle = _read(files)
    query = {"prune": "true"} if prune else {}
    with AdminClient(ctx, admin, token_file, timeout_s=TIMEOUT_S) as client:
        plan = _plan(client, bundle, query)
        if not as_json:
            _show_plan(plan, allowed=allow_signature_change)
        if dry_run or not plan["changes"]:
            if as_json:
                show_json(plan)
            return
        _confirm(plan, yes=yes)
        if allow_signature_change:
            query["allow_signature_change"] = "true"
        document = {"bundle": bundle, "expected": plan["expected"], "reason": reason}
        answer = client.post("apply", document=document, query=query)
    if as_json:
        show_json(answer)
    else:
        say(f"Done: {_counted(answer['changes'])}, revision {answer['revision']}.")


def diff(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    files: Files,
    *,
    prune: Prune = False,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Say what applying would change; the exit code is 7 if that is anything."""
    bundle = _read(files)
    with AdminClient(ctx, admin, token_file, timeout_s=TIMEOUT_S) as client:
        plan = _plan(client, bundle, {"prune": "true"} if prune else {})
    if as_json:
        show_json(plan)
    else:
        _show_plan(plan, allowed=False)
    if plan["changes"]:
        raise typer.Exit(PENDING)


def export(
    ctx: typer.Context,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file in place of stdout.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="yaml, toml or json; by default as the file's name ends."),
    ] = None,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Write all that people wrote as one file, which `apply` reads."""
    chosen = _format(form, output)
    with AdminClient(ctx, admin, token_file, timeout_s=TIMEOUT_S) as client:
        text = write_document(client.get("export"), chosen)
    if output is None:
        typer.echo(text, nl=False)
        return
    _write(output, text)
    say(f"Written to {output.name}.")


def schema(
    kind: Annotated[str | None, typer.Argument(help="One of the kinds; none with --all.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All of them, into a folder.")] = False,
    to: Annotated[Path | None, typer.Option("--to", help="The folder of the files.")] = None,
) -> None:
    """Print the JSON Schema of a kind of document, for editors."""
    if every == (kind is not None) or (every and to is None):
        message = "Name one kind, or give --all and the folder with --to."
        raise InvalidRequest(message)
    if kind is not None and kind not in KINDS:
        message = f"There is no schema of '{excerpt(kind)}'; there are: {', '.join(KINDS)}."
        raise InvalidRequest(message)
    if to is None:
        typer.echo(schema_text(str(kind)), nl=False)
        return
    for name in KINDS if kind is None else (kind,):
        _write(to / f"{name}.json", schema_text(name))


COMMANDS: Final[Mapping[str, Callable[..., None]]] = {
    "apply": apply,
    "diff": diff,
    "export": export,
    "schema": schema,
}


def _read(files: list[str]) -> Bundle:
    """All files as one bundle."""
    sources: list[Source] = []
    for stated in files:
        if stated == STDIN:
            text = sys.stdin.buffer.read()
            # JSON may hold tabs, which YAML does not take.
            form: Format = "json" if text.lstrip().startswith(b"{") else "yaml"
            sources.append(Source("stdin", text, form))
            continue
        sources += (
            Source(file.name, read_file(file), _format(None, file))
            for file in find_files(Path(stated))
        )
    return merged(sources)


def _format(stated: str | None, file: Path | None) -> Format:
    if stated is None and file is None:
        return "yaml"
    ending = f".{stated}" if stated is not None else file.suffix.lower() if file else ""
    if ending not in FORMATS:
        what = f"The format '{excerpt(stated)}'" if stated else f"The end of '{file and file.name}'"
        message = f"{what} is none of {', '.join(FORMATS)}."
        raise InvalidRequest(message)
    return FORMATS[ending]


def _plan(client: AdminClient, bundle: Bundle, query: Mapping[str, str]) -> dict[str, Any]:
    plan: dict[str, Any] = client.post(
        "apply", document={"bundle": bundle}, query={**query, "dry_run": "true"}
    )
    return plan


def _confirm(plan: dict[str, Any], *, yes: bool) -> None:
    """Ask before anything is deleted; without a terminal nobody can be asked."""
    deleted = sum(change["kind"] == "delete" for change in plan["changes"])
    if yes or not deleted:
        return
    if not sys.stdin.isatty():
        message = f"{deleted} documents would be deleted; say --yes to do it without a terminal."
        raise InvalidRequest(message)
    typer.confirm(f"Delete {deleted} documents?", abort=True, err=True)


def _show_plan(plan: dict[str, Any], *, allowed: bool) -> None:
    if not plan["changes"]:
        say(f"Nothing to change at revision {plan['revision']}.")
        return
    for change in plan["changes"]:
        say(f"{_SIGNS[change['kind']]} {change['kind']} {change['target']}")
        for row in change["differences"]:
            path = f"{row['path']}: " if row["path"] else ""
            say(f"    {path}{_text(row.get('before'))} -> {_text(row.get('after'))}")
    say(f"{_counted(plan['changes'])}, at revision {plan['revision']}.")
    if plan["refusal"] is not None:
        way = "It is allowed here" if allowed else "This would be refused"
        say(f"{way}: {plan['refusal']}")


_SIGNS: Final = {"create": "+", "update": "~", "delete": "-"}


def _counted(changes: list[dict[str, Any]]) -> str:
    kinds = [change["kind"] for change in changes]
    words = (
        ("create", "created"),
        ("update", "updated"),
        ("delete", "deleted"),
    )
    return ", ".join(f"{kinds.count(kind)} {word}" for kind, word in words)


def _text(value: object) -> str:
    """A value in one line."""
    if value is None:
        return "(unset)"
    text = msgspec.json.encode(value).decode()
    return plain(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        message = f"The file '{file.name}' cannot be written: {error.strerror}."
        raise InvalidRequest(message) from error
