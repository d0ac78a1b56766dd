"""Who may infer where inferences need a token, by either door and at a glance."""

import asyncio

import pytest
from msgspec.structs import replace

from gateway.core.access import Token
from gateway.core.endpoints import Split, Weighted
from gateway.doors.http.fast import FastProtocol
from gateway.doors.http.routes import METHOD, TEMPLATES
from gateway.settings import HttpSettings
from tests.doors.http.two_doors import Door, Kind, data_of, door, post, status_of
from tests.fakes import FakeEngine
from tests.planes import (
    FORCE_TOKEN,
    INFER_TOKEN,
    OTHER_TOKEN,
    READ_TOKEN,
    SECRETS,
    WRITE_TOKEN,
    endpoint_of,
    model_of,
    snapshot_of,
    split_rule,
)

CLOSED = HttpSettings(auth="token")
HEALTH = frozenset({"alive", "live", "ready", "model_ready", "v1_model"})
INFER, PREDICT = b"/v2/models/m/infer", b"/v1/models/m:predict"
ROWS = b'{"instances":[[1,0,0,0]]}'
each_door = pytest.mark.parametrize("kind", ["asgi", "fast"])


def shown(token: str) -> bytes:
    """The header that shows a token."""
    return b"Authorization: Bearer " + token.encode()


def asked(*lines: bytes, path: bytes = INFER) -> bytes:
    """An inference with further headers."""
    return post(ROWS if path == PREDICT else None, *lines, path=path)


@each_door
@pytest.mark.parametrize("path", [INFER, PREDICT])
@pytest.mark.parametrize(
    ("lines", "status"),
    [
        pytest.param((), 401, id="none"),
        pytest.param((shown("tilt_no_x"),), 401, id="unknown"),
        pytest.param((b"Authorization: Bearer",), 401, id="empty"),
        pytest.param((shown(INFER_TOKEN), shown(INFER_TOKEN)), 401, id="two"),
        pytest.param((shown(READ_TOKEN),), 403, id="viewer"),
        pytest.param((shown(WRITE_TOKEN),), 403, id="deployer"),
        pytest.param((shown(OTHER_TOKEN),), 403, id="other-model"),
        pytest.param((shown(INFER_TOKEN),), 200, id="infer"),
        pytest.param((shown(INFER_TOKEN), b"X-Force-Variant: default"), 403, id="force"),
    ],
)
async def test_an_inference_needs_the_right_to_it(
    kind: Kind, path: bytes, lines: tuple[bytes, ...], status: int
) -> None:
    """Only a token with the right `infer` for the model is answered; forcing needs its own."""
    async with door(kind, http=CLOSED) as one:
        answer = await one.ask(asked(*lines, path=path))
        assert status_of(answer) == status, answer
        assert one.held() == (0, 0, 0)


@each_door
async def test_an_open_port_asks_for_nothing(kind: Kind) -> None:
    """By default anybody may infer, and a token that means nothing here is no hindrance."""
    async with door(kind) as one:
        for lines in ((), (shown("tilt_no_x"),), (shown(OTHER_TOKEN),)):
            assert status_of(await one.ask(asked(*lines))) == 200


@each_door
async def test_names_are_told_to_nobody_unknown(kind: Kind) -> None:
    """Without a known token, an endpoint that is not there is answered as one that is."""
    async with door(kind, http=CLOSED) as one:
        nowhere = b"/v2/models/nobody/infer"
        assert status_of(await one.ask(asked(path=nowhere))) == 401
        assert status_of(await one.ask(asked(shown(INFER_TOKEN), path=nowhere))) == 404


@each_door
@pytest.mark.parametrize("action", sorted(TEMPLATES.keys() - {"unknown"}))
async def test_only_health_is_open(kind: Kind, action: str) -> None:
    """Every route but health refuses who shows no token, and no wrong method leads round that."""
    path = TEMPLATES[action].replace("{model_name}", "m").encode()
    async with door(kind, http=CLOSED) as one:
        answer = await one.ask(post(b"{}", path=path, method=METHOD.get(action, "GET").encode()))
        assert (status_of(answer) in (401, 403)) == (action not in HEALTH), answer


@pytest.mark.parametrize("change", ["revoked", "expired", "other-model"])
async def test_a_head_that_is_told_at_a_glance_is_decided_anew(change: str) -> None:
    """A connection whose heads are all alike hears at its next request that its token is over."""
    async with door("fast", http=CLOSED) as one:
        (token,) = (token for token in SECRETS.tokens if token.id == "infer")
        until_s = one.plane.clock.unix_ns() / 1e9 + 60
        told(one, replace(token, expires_at=until_s))
        caller = await one.dial()
        for _ in range(4):
            assert data_of(await caller.ask(asked(shown(INFER_TOKEN)))) == [101.0]
        connection = one.connections[0]
        assert isinstance(connection, FastProtocol)
        assert connection._glance is not None
        assert connection._glance.read(asked(shown(INFER_TOKEN))) is not None
        if change == "revoked":
            told(one)
        elif change == "expired":
            one.plane.clock.advance(60)
        else:
            (other,) = (token for token in SECRETS.tokens if token.id == "other")
            told(one, replace(token, holder=other.holder))
        status = 403 if change == "other-model" else 401
        assert status_of(await caller.ask(asked(shown(INFER_TOKEN)))) == status
        told(one, token)
        assert data_of(await caller.ask(asked(shown(INFER_TOKEN)))) == [101.0]


async def test_a_glance_takes_no_other_token() -> None:
    """Two callers behind one proxy's connection are each taken for who they are."""
    async with door("fast", http=CLOSED) as one:
        caller = await one.dial()
        for _ in range(3):
            for token, status in ((INFER_TOKEN, 200), (OTHER_TOKEN, 403), ("tilt_in_x", 401)):
                for _ in range(2):
                    assert status_of(await caller.ask(asked(shown(token)))) == status


@each_door
async def test_who_may_force_is_asked_where_tokens_are_needed(kind: Kind) -> None:
    """The right to force alone does not infer."""
    halves = Split(
        exposure=10_000,
        variants=(Weighted("old", 5_000, version=1), Weighted("new", 5_000, version=2)),
    )
    engines = {("m", 1): FakeEngine(bias=100), ("m", 2): FakeEngine(bias=200)}
    snapshot = snapshot_of(
        models={"m": model_of(1, 2)}, endpoints={"e": endpoint_of(split_rule(halves))}
    )
    async with door(kind, engines, snapshot=snapshot, http=CLOSED) as one:
        force, infer = (
            next(token for token in SECRETS.tokens if token.id == name)
            for name in ("force", "infer")
        )
        lines = (shown(FORCE_TOKEN), b"X-Force-Variant: new")
        request = asked(*lines, path=b"/v2/models/e/infer")
        assert status_of(await one.ask(request)) == 403
        both = (*force.holder.inference, *infer.holder.inference)
        told(one, replace(force, holder=replace(force.holder, inference=both)))
        assert data_of(await one.ask(request)) == [201.0]


def told(one: Door, *tokens: Token) -> None:
    """Control says which tokens are good."""
    one.plane.worker.entrust(replace(SECRETS, tokens=tokens))


async def test_a_revocation_during_a_body_does_not_matter() -> None:
    """Whoever was let in by their head is answered; the next head is asked again."""
    async with door("fast", http=CLOSED) as one:
        caller = await one.dial()
        request = asked(shown(INFER_TOKEN))
        caller.send(request[:-5])
        while not one.held()[0]:  # noqa: ASYNC110 - the socket has no event of this loop
            await asyncio.sleep(0.001)
        told(one)
        caller.send(request[-5:])
        assert data_of(await caller.read()) == [101.0]
        assert status_of(await caller.ask(request)) == 401
