"""Commands on versions: register, inspect, look at one, compare two."""

import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from gateway.core.errors import GatewayError, InvalidRequest, VersionRefused, excerpt
from gateway.core.lineage import joined
from gateway.core.models import is_name
from gateway.core.reviews import Outcome
from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.front import AdminUrl, AsJson, Reason, TokenFile, Version
from gateway.doors.cli.output import say, show_json, show_table

MODEL_FILE: Final = "model.onnx"
CHUNK: Final = 1024 * 1024
TIMEOUT_S: Final = 600.0
"""An inspection may take minutes."""
CHECKS: Final = ("check", "outcome", "measure", "says")

Model = Annotated[str, typer.Argument(help="The model's name.")]


def register(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    model: Model,
    path: Annotated[
        Path | None, typer.Argument(help="The version's folder, or its model file alone.")
    ] = None,
    *,
    source: Annotated[
        str | None, typer.Option(help="A folder inside the model store, in place of a path here.")
    ] = None,
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="Its number; without it, the next.")
    ] = None,
    lineage: Annotated[
        Path | None, typer.Option(help="A TOML file like version.toml that adds to its lineage.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; may be repeated.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of how it was trained; may be repeated.")
    ] = None,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Register a version: send its files, have it inspected, and see each check."""
    document: dict[str, Any] = {"version": version, "reason": reason}
    told = {} if lineage is None else _read_toml(lineage)
    given = {"tags": _pairs(tag), "parameters": _pairs(parameter)}
    document["lineage"] = joined(told, {name: table for name, table in given.items() if table})
    if (path is None) == (source is None):
        message = "Name the version's folder or file, or --source inside the model store."
        raise InvalidRequest(message)
    files = {} if path is None else files_of(path)
    with AdminClient(ctx, admin, token_file, timeout_s=TIMEOUT_S) as client:
        if source is not None:
            document["source"] = source
        else:
            document["upload"] = _send(client, model, files)
        try:
            answer = client.post("models", model, "versions", document=document)
        except VersionRefused as error:
            if as_json:
                show_json({"error": str(error), "checks": error.checks})
            else:
                show_checks(f"Checks of a new version of {model}", error.checks)
            raise
        except GatewayError:
            _forget(client, model, document.get("upload"))
            raise
    if as_json:
        show_json(answer)
        return
    show_checks(f"Checks of {model} {answer['version']}", answer["checks"])
    done = f"is registered at revision {answer['revision']}"
    say(f"Version {answer['version']} of {model} {done if answer['changed'] else 'was known'}.")
    _say_failed(answer["checks"])
    if answer["changed"]:
        words = f"tiltyard gate check {model} {answer['version']}"
        say(f"`{words}` says what it needs before it may be promoted.")


def show_version(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    model: Model,
    number: Version,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Show all that is known of a version: files, lineage, checks, approvals."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("models", model, "versions", str(number))
    if as_json:
        show_json(document)
        return
    review, report = document["review"] or {}, document["inspection"] or {}
    rows = [
        ("digest", document["digest"]),
        ("aliases", document["aliases"]),
        ("registered by", review.get("registered_by")),
        ("approved by", [one["principal"] for one in review.get("approvals", ())]),
        *((f"file {file['path']}", f"{file['size']} bytes") for file in document["files"]),
        *((name, value) for name, value in _flat(document["lineage"])),
        ("parameters of the graph", report.get("parameters")),
        ("operators", report.get("operators")),
    ]
    show_table(f"{model} {number}", ("what", "value"), rows, empty="")
    show_checks("Checks", report.get("checks") or review.get("checks") or {})


def show_lineage(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    model: Model,
    number: Annotated[int | None, typer.Argument(help="Of this version only.", min=1)] = None,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Show where versions come from, and what was made from them."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("models", model, "lineage", query={"version": number})
    if as_json:
        show_json(document)
        return
    show_table(
        f"Lineage of {model}",
        ("version", "parent", "ancestors", "children", "commit", "data", "tags"),
        [
            (
                row["number"],
                row.get("parent"),
                row.get("ancestors"),
                row.get("children"),
                row["lineage"].get("commit"),
                [
                    one.get("location") or one.get("sha256", "")[:12]
                    for one in row["lineage"].get("data", ())
                ],
                row["lineage"].get("tags"),
            )
            for row in document["versions"]
        ],
        empty="No version is registered.",
    )


def show_diff(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    model: Model,
    before: Version,
    after: Version,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Show what changed from one version to another."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("models", model, "diff", query={"from": before, "to": after})
    if as_json:
        show_json(document)
        return
    show_table(
        f"{model}: from {before} to {after}",
        ("of", "what", str(before), str(after)),
        [
            (row["section"], row["name"], row["before"], row["after"])
            for row in document["differences"]
        ],
        empty="Nothing differs.",
    )


def inspect(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    model: Model,
    number: Version,
    *,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Inspect a registered version again."""
    with AdminClient(ctx, admin, token_file, timeout_s=TIMEOUT_S) as client:
        path = "models", model, "versions", str(number), "inspect"
        answer = client.post(*path, document={"reason": reason})
    if as_json:
        show_json(answer)
    else:
        show_checks(f"Checks of {model} {number}", answer["inspection"]["checks"])
    if not answer["acceptable"]:
        message = f"Version {number} of {model} would not be registered as it is now."
        raise VersionRefused(message)


def show_checks(title: str, checks: Mapping[str, Any]) -> None:
    """A row for each check."""
    rows = [
        (name, check["outcome"], check.get("measure"), check.get("summary"))
        for name, check in checks.items()
    ]
    show_table(title, CHECKS, rows, empty="No check was made.")


def files_of(path: Path) -> dict[str, Path]:
    """The files of a version's folder by name; a file alone is the model.

    Raises:
        InvalidRequest: there is none, or something there is no plain file.
    """
    if path.is_file():
        return {MODEL_FILE: path}
    if not path.is_dir():
        message = f"'{excerpt(path.name)}' is no folder and no file."
        raise InvalidRequest(message)
    found = {one.name: one for one in sorted(path.iterdir()) if not one.name.startswith(".")}
    for name, file in found.items():
        if not is_name(name) or not file.is_file():
            message = f"'{excerpt(name)}' is no file with a proper name; a version has only those."
            raise InvalidRequest(message)
    if MODEL_FILE not in found:
        message = f"The folder '{excerpt(path.name)}' has no {MODEL_FILE}."
        raise InvalidRequest(message)
    return found


def _say_failed(checks: Mapping[str, Any]) -> None:
    failed = [name for name, check in checks.items() if check["outcome"] == Outcome.FAILED]
    if failed:
        say(f"It did not pass: {', '.join(failed)}.")


def _forget(client: AdminClient, model: str, upload: str | None) -> None:
    """Leave no upload behind that the next try would not use."""
    if upload is not None:
        with suppress(GatewayError):
            client.delete("models", model, "uploads", upload, query={}, if_match=None)


def _send(client: AdminClient, model: str, files: Mapping[str, Path]) -> str:
    """Send files; the upload's id."""
    upload: str = client.post("models", model, "uploads", document={})["id"]
    for name, file in files.items():
        try:
            with file.open("rb") as content:
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()
                size = content.tell()
            whole = file.read_bytes() if size <= CHUNK else _parts(file)
        except OSError as error:
            message = f"'{excerpt(name)}' cannot be read: {error.strerror}."
            raise InvalidRequest(message) from error
        path = "models", model, "uploads", upload, "files", name
        client.send(*path, content=whole, size=size, sha256=sha256)
    return upload


def _parts(file: Path) -> Iterator[bytes]:
    with file.open("rb") as content:
        while part := content.read(CHUNK):
            yield part


def _pairs(given: list[str] | None) -> dict[str, str]:
    pairs = {}
    for one in given or ():
        key, equals, value = one.partition("=")
        if not key or not equals:
            message = f"'{excerpt(one)}' is no KEY=VALUE."
            raise InvalidRequest(message)
        pairs[key] = value
    return pairs


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        message = f"'{excerpt(path.name)}' cannot be read as TOML."
        raise InvalidRequest(message) from error
    # As JSON keeps it: dates become text.
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(told))
    return plain


def _flat(lineage: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in lineage.items():
        if name == "parent" and value is not None:
            yield name, f"{value['model']}/{value['number']}"
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", one) for key, one in value.items())
        elif name == "data":
            yield name, [one.get("location") or one.get("sha256") for one in value]
        elif value:
            yield name, value
