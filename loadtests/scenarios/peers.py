"""Every peer in turn against the bare endpoint and Tiltyard, on the first small model.

A peer is held still while others are measured: some of them use the core even when idle.
"""

import http.client
import time
from collections.abc import Iterable
from functools import partial

from loadtests import requests
from loadtests.arena import Arena
from loadtests.contestants import LEFT_OUT, Contestant, start_peer
from loadtests.scenarios.closed_loop import small
from loadtests.servers import LOOK_S, READY_S, NotReady, ask, await_answer, paused
from loadtests.stats import Slice, chosen, middle_ratio


def peers(arena: Arena) -> None:
    """One bout for each peer; one that cannot be had is reported with the reason."""
    model = small(arena)[0]
    for name, reason in LEFT_OUT.items():
        arena.note(f"{name} is left out: {reason}.")
    for name in arena.peers:
        arena.check_time()
        try:
            peer = arena.adopt(start_peer(arena.world, name, model))
        except NotReady as error:
            arena.note(f"{name} could not be measured: {error}")
            continue
        try:
            _await(peer, model)
            _bout(arena, peer, model)
        except (NotReady, RuntimeError) as error:
            arena.note(f"{name} could not be measured: {error}")
        finally:
            arena.dismiss(peer)


def _await(peer: Contestant, model: str) -> None:
    """Until it answers an inference as it should."""
    target = peer.target(model)
    headers, content = requests.body(model, requests.rows(model)[0], target.dialect, "json")
    await_answer(peer.server, partial(ask, peer.port, "POST", target.path, content, headers))


def _bout(arena: Arena, peer: Contestant, model: str) -> None:
    arena.plan(peer, model, "json")

    def measure(name: str, turn: int) -> None:
        if name == peer.name:
            arena.closed(peer, model, scenario="peers", bout=peer.name, round=turn)
            return
        with paused(peer.server):
            arena.closed(
                arena.contestant(name), model, scenario="peers", bout=peer.name, round=turn
            )
        _wake(peer, model)

    arena.alternate(("bare", "tiltyard", peer.name), measure)


def _wake(peer: Contestant, model: str) -> None:
    """A peer that was held still may need a moment to find its processes again."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        try:
            _await(peer, model)
        except (OSError, http.client.HTTPException):
            time.sleep(LOOK_S)
        else:
            return


def figures(slices: Iterable[Slice]) -> dict[str, float]:
    """`peers/<peer>/times`: our throughput over the peer's; `/p99`: our p99 over its."""
    found, of = {}, chosen(slices, scenario="peers")
    for peer in sorted({one["bout"] for one in of}):
        bout = chosen(of, bout=peer)
        ours = chosen(bout, contestant="tiltyard")
        theirs = chosen(bout, contestant=peer)
        if ours and theirs:
            found[f"peers/{peer}/times"] = middle_ratio(ours, theirs, "rps")
            found[f"peers/{peer}/p99"] = middle_ratio(ours, theirs, "p99_us")
    return found
