"""Commands on the audit log: look, export, verify, archive; and restoring a store that lost it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, Final

import msgspec
import typer

from gateway.core.chain import Chain, Gap, Head, begin
from gateway.core.checkpoints import KEY_FILE, Signed, read_key
from gateway.core.errors import InvalidRequest, NotFound, excerpt
from gateway.core.sought import Sought
from gateway.doors.cli.audit_files import (
    check_archives,
    check_export,
    lines_of,
    write_archive,
    write_export,
    written_whole,
)
from gateway.doors.cli.audit_rows import COLUMNS, STYLES, mark_of, row_of
from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.front import AdminUrl, AsJson, FrontStep, Reason, TokenFile, front_of
from gateway.doors.cli.output import say, show_json, show_table
from gateway.doors.cli.spans import moment_of, seconds_of

app = typer.Typer(no_args_is_help=True, help="Who did what, when and why; and that it is so.")

DIFFERS: Final = 6
"""Exit code: a chain is broken, or a decision does not come out again."""
DAY_S: Final = 86_400.0
LOOKS: Final = 5
"""How often what was committed meanwhile is read, before the chain is held against the head."""
MAX_PAGE: Final = 1_000

Actor = Annotated[str | None, typer.Option(help="By this principal only.")]
Action = Annotated[str | None, typer.Option(help="Actions that begin so, such as 'model.'.")]
Target = Annotated[str | None, typer.Option(help="Targets that begin so: 'endpoints/'.")]
Model = Annotated[str | None, typer.Option(help="What belongs to this model.")]
Since = Annotated[
    str | None, typer.Option(help="Not older than this: 90s, 15m, 2h, 7d, or an ISO time.")
]
Until = Annotated[str | None, typer.Option(help="Before this time, written likewise.")]
Overrides = Annotated[bool, typer.Option("--overrides", help="Gates passed by force only.")]
Denied = Annotated[bool, typer.Option("--denials", help="What was refused only.")]


@app.command("list")
def list_entries(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    *,
    actor: Actor = None,
    action: Action = None,
    target: Target = None,
    model: Model = None,
    since: Since = None,
    until: Until = None,
    overrides: Overrides = False,
    denials: Denied = False,
    oldest: Annotated[bool, typer.Option("--oldest", help="The oldest first.")] = False,
    after: Annotated[int, typer.Option(min=0, help="With --oldest: behind this revision.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """List entries, the newest first; gates that were passed by force stand out."""
    now = front_of(ctx).unix_time()
    query: dict[str, Any] = {
        "actor": actor,
        "action": action,
        "target": target,
        "model": model,
        "since": None if since is None else f"{moment_of(since, now):.3f}",
        "until": None if until is None else f"{moment_of(until, now):.3f}",
        "overrides": "true" if overrides else None,
        "denials": "true" if denials else None,
        "newest": None if oldest or after else "true",
        "after": after or None,
    }
    with AdminClient(ctx, admin, token_file) as client:
        found, unreadable = _found(client, query, limit)
    if as_json:
        show_json(found)
        return
    show_table(
        "Audit",
        COLUMNS,
        [row_of(item["entry"]) for item in found],
        empty="There is no such entry.",
        styles=[STYLES.get(mark_of(item["entry"]), "") for item in found],
        whole=("revision", "action"),
    )
    for revision in unreadable:
        say(f"Revision {revision} cannot be read; `tiltyard audit verify` says more.")


@app.command("show")
def show_entry(
    ctx: typer.Context,
    revision: Annotated[int, typer.Argument(min=1, help="The revision that it made.")],
    *,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Show one entry whole, with its hash; always in JSON."""
    with AdminClient(ctx, admin, token_file) as client:
        page = client.get("audit", query={"after": revision - 1, "limit": 1})
    if not page["entries"] or page["entries"][0]["entry"]["revision"] != revision:
        message = f"The store's audit log does not hold revision {revision}."
        raise NotFound(message)
    show_json(page["entries"][0])


@app.command("export")
def export(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="Where to; stdout if left out.")] = None,
    *,
    actor: Actor = None,
    action: Action = None,
    target: Target = None,
    model: Model = None,
    since: Since = None,
    until: Until = None,
    overrides: Overrides = False,
    denials: Denied = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Write entries as JSON Lines, byte by byte as they were hashed; `verify --file` reads them."""
    now = front_of(ctx).unix_time()
    sought = Sought(
        actor=actor,
        action=action,
        target=target,
        model=model,
        since=None if since is None else moment_of(since, now),
        until=None if until is None else moment_of(until, now),
        overrides=overrides,
        denials=denials,
    )
    with AdminClient(ctx, admin, token_file) as client, _place(file) as out:
        after, before = begin(client.read("audit", "head", into=Head)).origin
        end = write_export(lines_of(client, after), out, after=after, before=before, sought=sought)
    if file is not None:
        say(f"{end.entries} entries through revision {end.revision}: head {end.head}.")


@app.command("verify")
def verify(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    *,
    file: Annotated[Path | None, typer.Option(help="An export; no gateway is asked.")] = None,
    archives: Annotated[Path | None, typer.Option(help="A folder of archives to join.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="With --archives: ask no gateway.")
    ] = False,
    head: Annotated[str | None, typer.Option(help="The hash to which the file must lead.")] = None,
    key: Annotated[Path | None, typer.Option(help="The audit.key that signed.")] = None,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Check the whole chain: every hash and link, from the first entry to the Snapshot's head."""
    notes: list[str] = []
    if file is not None:
        chain, partial = check_export(file)
        if partial:
            notes.append("The file holds a selection: each entry is whole, none may be missed.")
        if head is not None and chain.head != head:
            chain.blame("cut", "The file does not lead to the head that was given.")
    else:
        joined = None
        if archives is not None:
            joined, states = check_archives(archives, _key(front_of(ctx), key))
            unknown = states.count("unknown")
            notes += [f"{unknown} signatures were not checked: no key."] if unknown else []
        if joined is not None and offline:
            chain = joined
        else:
            with AdminClient(ctx, admin, token_file) as client:
                chain = verified(client, joined)
    tell_chain(chain, as_json=as_json, notes=notes)


@app.command("archive")
def archive(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    *,
    to: Annotated[Path, typer.Option(help="The folder of archives, on this host.")],
    before: Annotated[int | None, typer.Option(min=1, help="Entries before this one.")] = None,
    older_than: Annotated[str | None, typer.Option(help="Older than this: 90d.")] = None,
    no_trim: Annotated[bool, typer.Option("--no-trim", help="Leave the store as it is.")] = False,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Write old entries to a file behind a signed checkpoint, then trim them from the store."""
    days = None if older_than is None else seconds_of(older_than) / DAY_S
    wanted = {"before": before, "older_than_days": days}
    with AdminClient(ctx, admin, token_file) as client:
        signed = msgspec.convert(client.post("audit", "checkpoint", document=wanted), Signed)
        path = write_archive(client, to, signed)
        told = {"file": path.name, "signed": signed, "trimmed": not no_trim}
        if not no_trim:
            asked = {"signed": signed, "reason": reason}
            told |= client.post("audit", "trim", document=asked)
    checkpoint = signed.checkpoint
    if as_json:
        show_json(told)
        return
    say(
        f"{checkpoint.entries} entries, revision {checkpoint.first} to {checkpoint.last}, "
        f"are in {path.name}{'' if no_trim else ' and no longer in the store'}."
    )


def restore(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    *,
    reason: Annotated[str, typer.Option(help="Why, for the audit log; required.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say only what it would do.")] = False,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Put back into a store that lost its data what this host serves, under a new epoch."""
    with AdminClient(ctx, admin, token_file, timeout_s=RESTORE_S) as client:
        done = client.post("restore", document={"reason": reason, "dry_run": dry_run})
    if as_json:
        show_json(done)
        return
    would = "would be" if dry_run else "is"
    say(
        f"The store ({done['store']}) {would} at revision {done['revision']} of epoch "
        f"{done['epoch']}: what this host served at revision {done['from_revision']}, with "
        f"{done['manifests']} manifests and {done['signing_keys']} signing keys."
    )
    if done["lost_revisions"]:
        first, last = done["lost_revisions"]
        say(f"Audit entries of revision {first} to {last} are no longer in the store's log.")
    for one in done["without_manifest"]:
        say(f"The manifest of {one} is not on this host: register it again.")
    for name in done["experiments"]:
        say(
            f"Experiment '{name}' runs on; its tallies are lost, but for what journals send again: "
            "stop it and start another."
        )
    say("Inspection reports are not on any host: inspect again where one is asked for.")
    say("Webhooks are not on any host either: put each again.")


RESTORE_S: Final = 300.0


def verified(client: AdminClient, chain: Chain | None = None) -> Chain:
    """Look at the whole log; the chain goes on from archives, if there are any."""
    head = client.read("audit", "head", into=Head)
    if chain is None:
        chain = begin(head)
    else:
        chain.enter_log()
    for _ in range(LOOKS):
        for line in lines_of(client, chain.revision):
            chain.add(line)
        # The head last: what is committed while the log is read comes after what was read.
        head = client.read("audit", "head", into=Head)
        if chain.revision >= head.revision:
            break
    chain.finish(head)
    return chain


def tell_chain(chain: Chain, *, as_json: bool, notes: list[str] | None = None) -> None:
    """Say what became of a chain; ends the command if it does not hold."""
    if as_json:
        show_json(
            {
                "entries": chain.entries,
                "decisions": chain.decisions,
                "revision": chain.revision,
                "head": chain.head,
                "broken_at": chain.faults[0].revision if chain.faults else None,
                "faults": chain.faults,
                "gaps": chain.gaps,
            }
        )
    else:
        _say_chain(chain, notes or [])
    if chain.faults:
        raise typer.Exit(DIFFERS)


def _say_chain(chain: Chain, notes: list[str]) -> None:
    for fault in chain.faults:
        say(fault.sentence)
    if chain.faults:
        say(f"The chain is broken at revision {chain.faults[0].revision}.")
    else:
        start = f"the checkpoint of revision {chain.began}" if chain.began else "nothing"
        say(
            f"The chain holds: {chain.entries} entries, {chain.decisions} of them "
            f"decisions, lead from {start} to the head {chain.head[:12]}."
        )
    for gap in chain.gaps:
        say(_gap_told(gap))
    for note in notes:
        say(note)


def _gap_told(gap: Gap) -> str:
    return (
        f"Revision {gap.first} to {gap.last} are not there: the store had lost them "
        f"when it was restored at revision {gap.restored_at}."
    )


def _found(
    client: AdminClient, query: dict[str, Any], limit: int
) -> tuple[list[dict[str, Any]], list[int]]:
    """Pages until there are enough, or no more."""
    found: list[dict[str, Any]] = []
    unreadable: list[int] = []
    while True:
        asked = {**query, "limit": min(limit - len(found), MAX_PAGE)}
        page = client.get("audit", query=asked)
        found += page["entries"]
        unreadable += page["unreadable"]
        if page["next"] is None or len(found) >= limit:
            return found, unreadable
        query = {**query, ("before" if query["newest"] else "after"): page["next"]}


@contextmanager
def _place(file: Path | None) -> Iterator[IO[bytes]]:
    if file is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with written_whole(file) as out:
        yield out


def _key(front: FrontStep, given: Path | None) -> bytes | None:
    """The key of this host, or as given; None if there is none here."""
    path = given or Path(front.settings().state_dir) / KEY_FILE
    try:
        return read_key(path.read_bytes())
    except FileNotFoundError:
        if given is None:
            return None
        message = f"There is no key '{excerpt(given.name)}'."
        raise InvalidRequest(message) from None
    except OSError as error:
        message = f"The key '{excerpt(path.name)}' cannot be read: {error.strerror}."
        raise InvalidRequest(message) from error
