"""Bad requests to the admin API (A rows) that other pages here do not show."""

import gzip
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from gateway.core.errors import InvalidRequest
from gateway.core.principals import Action
from gateway.doors.http.admin_calls import Operation
from gateway.doors.http.admin_routes import OPERATIONS
from gateway.processes.control_half import check_admin
from gateway.settings import SECRETS, AdminSettings, Settings
from tests.doors.http.admin_world import MODEL, READER, WRITER, World

HOSTILE: Final = "x\r\nadmin: promoted\x1b[2J\x00\u202e"
"""What would be a line of its own, clear a terminal, and turn the rest around."""
MODEL_PATH: Final = f"/admin/v1/models/{MODEL}"
ENDPOINT: Final = f"/admin/v1/endpoints/{MODEL}"
BODIED: Final = [row for row in OPERATIONS if row.body is not None]
SMALL: Final[dict[str, Any]] = {"schema": 1, "model": MODEL}
HUGE: Final = 10_000_000


def path_of(row: Operation) -> str:
    """The path with its places filled in."""
    return re.sub(r"\{\w+\}", MODEL, row.path.replace("{version}", "1").replace("{number}", "1"))


def label_of(row: Operation) -> str:
    """How a test names an operation."""
    return f"{row.method} {row.path}"


async def in_parts(size: int) -> AsyncIterator[bytes]:
    """A body whose length nobody states."""
    for _ in range(0, size, 100_000):
        yield b" " * 100_000


@pytest.mark.parametrize("row", BODIED, ids=label_of)
async def test_no_operation_reads_ten_megabytes(row: Operation) -> None:
    """A9 Stated, in parts, and compressed: 413 whatever it would have been, and nothing changes."""
    world = await World().seed()
    packed: dict[str, Any] = {
        "content": gzip.compress(b" " * HUGE, 1),
        "headers": {"content-encoding": "gzip"},
    }
    for given in ({"content": b" " * HUGE}, {"content": in_parts(HUGE)}, packed):
        response = await world.ask(row.method, path_of(row), **given)
        assert response.status_code == 413
        assert list(response.json()) == ["error"]
    assert world.registry.snapshot.revision == 3


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param([{"name": f"r{number}"} for number in range(100_000)], id="10^5 rules"),
        pytest.param(
            [
                {
                    "name": "r",
                    "split": {
                        "exposure": 1,
                        "variants": [{"name": f"v{at}", "weight": 1} for at in range(10_000)],
                    },
                }
            ],
            id="10,000 variants",
        ),
        pytest.param([{"name": f"r{number}"} for number in range(5_000)], id="5,000 rules"),
    ],
)
async def test_a_document_of_too_many_is_refused(rules: list[Any]) -> None:
    """A9 By its size or by their number, in each of the ways in."""
    world = await World().seed()
    document = {**SMALL, "rules": rules}
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("PUT", ENDPOINT, document),
        ("PUT", f"{ENDPOINT}?dry_run", document),
        ("POST", "/admin/v1/apply", {"bundle": {"schema": 1, "endpoints": {MODEL: document}}}),
    ]
    for method, path, body in ways:
        response = await world.ask(method, path, body)
        assert response.status_code in (400, 413), path
        assert len(response.json()["error"]) < 1_000
    assert world.registry.snapshot.revision == 3


@pytest.mark.parametrize(
    ("cap", "path", "document"),
    [
        pytest.param(
            "gateway.core.credentials.MAX_PRINCIPALS",
            "/admin/v1/principals/p{}",
            {"schema": 1},
            id="principals",
        ),
        pytest.param(
            "gateway.core.snapshot.MAX_GATES",
            "/admin/v1/gates/g{}",
            {"schema": 1, "models": ["x*"]},
            id="gates",
        ),
    ],
)
async def test_documents_are_few(
    monkeypatch: pytest.MonkeyPatch, cap: str, path: str, document: dict[str, Any]
) -> None:
    """A9 One more than there may be is refused; those that are there can still be changed."""
    monkeypatch.setattr(cap, 2)
    world = await World().seed()
    answers = [await world.ask("PUT", path.format(at), document) for at in (1, 2, 3, 1)]
    statuses = [answer.status_code for answer in answers]
    assert (statuses[0], statuses[1], statuses[3]) == (200, 200, 200)
    assert statuses[2] in (400, 409, 413)
    assert "2" in answers[2].json()["error"]


async def test_registering_is_replayed_not_repeated(tmp_path: Path) -> None:
    """A7 The same request under one Idempotency-Key registers one version and answers alike."""
    (tmp_path / "models").mkdir()
    world = await World(folder=tmp_path).seed()
    path = f"{MODEL_PATH}/uploads"
    upload = (await world.ask("POST", path, {})).json()["id"]
    octets = {"content-type": "application/octet-stream"}
    file = f"{path}/{upload}/files/model.onnx"
    await world.ask("PUT", file, content=b"onnx", headers=octets)
    key = {"idempotency-key": "ci-7"}
    asked: Any = {"document": {"upload": upload}, "headers": key}
    first = await world.ask("POST", f"{MODEL_PATH}/versions", **asked)
    assert first.status_code == 201
    again = await world.ask("POST", f"{MODEL_PATH}/versions", **asked)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert sum(one.action == "model.register" for one in world.memory.entries) == 4


async def test_a_key_is_its_callers_own() -> None:
    """A7 Another principal under the same key gets no answer that was meant for somebody else."""
    world = await World().seed()
    key = {"idempotency-key": "k"}
    asked: Any = {"document": {"version": 2}, "headers": key}
    assert (await world.ask("POST", f"{MODEL_PATH}/promote", **asked)).status_code == 200
    refused = await world.ask("POST", f"{MODEL_PATH}/promote", **asked, token=READER)
    assert refused.status_code == 403
    assert "idempotency-replayed" not in refused.headers


@pytest.mark.parametrize("row", OPERATIONS, ids=label_of)
async def test_a_secret_is_in_no_answer(row: Operation) -> None:
    """A12 Whatever is asked for, the token that asks is never told back."""
    world = await World().seed()
    content = None if row.body is None else b"{}"
    response = await world.ask(row.method, path_of(row), content=content)
    assert WRITER not in response.text
    assert WRITER.rpartition("_")[2] not in response.headers.values()


@pytest.mark.parametrize(("section", "name"), sorted(SECRETS), ids=str)
def test_settings_do_not_show_their_secrets(section: str, name: str) -> None:
    """A12 Wherever they are printed, alone or in the tree; that one is set can be seen."""
    hidden = "tilt_s_ecretsecret"
    group = msgspec.structs.replace(getattr(Settings(), section), **{name: hidden})
    settings = msgspec.structs.replace(Settings(), **{section: group})
    assert hidden not in f"{settings} {settings!r} {group}"
    assert f"{name}=***" in repr(settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "gateway.example"])
def test_an_open_listener_takes_a_token_of_the_operators(host: str, tmp_path: Path) -> None:
    """A13 Without one the gateway does not start; on loopback it makes its own."""
    admin = AdminSettings(host=host)
    with pytest.raises(InvalidRequest, match="TILTYARD_ADMIN_TOKEN"):
        check_admin(Settings(admin=admin, state_dir=str(tmp_path)))
    given = msgspec.structs.replace(admin, token="t" * 32)
    check_admin(Settings(admin=given, state_dir=str(tmp_path)))
    check_admin(Settings(state_dir=str(tmp_path)))
    assert Settings().admin.host == "127.0.0.1"


def reasoned() -> list[tuple[str, str, dict[str, Any]]]:
    """Writes with a reason, each legal in a fresh world."""
    return [
        ("POST", f"{MODEL_PATH}/promote", {"version": 2}),
        ("POST", f"{MODEL_PATH}/load", {"version": 3}),
        ("POST", f"{MODEL_PATH}/versions/2/approve", {}),
        ("POST", f"{MODEL_PATH}/wishes", {"version": 2}),
    ]


@pytest.mark.parametrize("wish", reasoned(), ids=lambda wish: wish[1].rpartition("/")[2])
async def test_a_reason_is_one_line_of_the_log(
    wish: tuple[str, str, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """A11 It is kept as it was given, escaped; a huge one is refused and changes nothing."""
    caplog.set_level(logging.DEBUG, logger="gateway")
    world = await World().seed()
    method, path, document = wish
    huge = await world.ask(method, path, {**document, "reason": "x" * 100_000})
    assert huge.status_code == 400
    assert len(huge.json()["error"]) < 300
    assert world.registry.snapshot.revision == 3
    response = await world.ask(method, path, {**document, "reason": HOSTILE})
    assert response.status_code == 200, response.text
    page = await world.ask("GET", "/admin/v1/audit?newest&limit=1")
    (item,) = page.json()["entries"]
    assert item["entry"]["reason"] == HOSTILE
    for raw in (page.content, msgspec.json.encode(world.memory.entries[-1])):
        assert not {b"\r", b"\n", b"\x1b", b"\x00"} & {bytes([byte]) for byte in raw}
    for record in caplog.records:
        assert "\nadmin" not in record.getMessage()


@pytest.mark.parametrize("path", [ENDPOINT, "/admin/v1/gates/g", "/admin/v1/principals/p"])
async def test_a_reason_in_a_query_is_bounded(path: str) -> None:
    """A11 As one in a body."""
    world = await World().seed()
    document: dict[str, Any] = {
        ENDPOINT: SMALL,
        "/admin/v1/gates/g": {"schema": 1, "models": ["m*"]},
    }.get(path, {"schema": 1})
    for reason, status in (("x" * 1_001, 400), (HOSTILE, 200)):
        response = await world.ask("PUT", path, document, params={"reason": reason})
        assert response.status_code == status, response.text
    assert world.memory.entries[-1].reason == HOSTILE


async def test_lineage_is_told_as_text(tmp_path: Path) -> None:
    """A11 In answers as JSON, in cards as text that begins no line, no tag and no table's cell."""
    (tmp_path / "models").mkdir()
    world = await World(folder=tmp_path).seed()
    upload = (await world.ask("POST", f"{MODEL_PATH}/uploads", {})).json()["id"]
    path = f"{MODEL_PATH}/uploads/{upload}/files/model.onnx"
    headers = {"content-type": "application/octet-stream"}
    await world.ask("PUT", path, content=b"onnx", headers=headers)
    script = "<script>x</script>"
    lineage = {"description": script + HOSTILE, "trainer": HOSTILE, "tags": {"k": HOSTILE}}
    asked = {"upload": upload, "lineage": lineage, "reason": script + HOSTILE}
    answer = await world.ask("POST", f"{MODEL_PATH}/versions", asked)
    assert answer.status_code == 201, answer.text
    card = f"{MODEL_PATH}/versions/4/card"
    for form in ("", ".md", ".html"):
        response = await world.ask("GET", card + form)
        assert response.status_code == 200, response.text
        assert "\x1b" not in response.text
        assert "\x00" not in response.text
        assert "\nadmin: promoted" not in response.text
        assert form == "" or "\u202e" not in response.text
        if form:
            assert "<script>" not in response.text


@pytest.mark.parametrize("verb", ["HEAD", "OPTIONS", "TRACE", "PATCH", "PROPFIND", "put", "Post"])
async def test_another_method_changes_nothing(verb: str) -> None:
    """A16 On every path that some method changes, for who may change it."""
    world = await World().seed()
    for row in OPERATIONS:
        if row.method == "GET" or row.action is Action.READ:
            continue
        status, _ = await world.knock(verb, path_of(row), WRITER)
        assert status in (200, 400, 404, 405), (verb, row.path)
    assert world.registry.snapshot.revision == 3
    assert len(world.memory.entries) == 3
