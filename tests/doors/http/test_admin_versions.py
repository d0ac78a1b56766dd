import hashlib
from base64 import b64encode
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.core.access import Principal, Token, digest_of
from gateway.core.principals import Grant, Role
from gateway.core.reviews import Check, CheckResult, Outcome
from gateway.doors.http.admin_uploads import PART_BYTES
from gateway.doors.http.messages import Message
from tests.doors.http.admin_world import MODEL, READER, TOKENS, WRITER, World

VERSIONS = f"/admin/v1/models/{MODEL}/versions"
UPLOADS = f"/admin/v1/models/{MODEL}/uploads"
LINEAGE = b'commit = "c0ffee"\nparent = 3\n[tags]\nteam = "delays"\n'
FAILED = CheckResult(Outcome.FAILED, "It takes too much memory.")


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """Three versions, and a model store in a folder."""
    (tmp_path / "models").mkdir()
    return await World(folder=tmp_path).seed()


def add(world: World, name: str, *grants: Grant) -> str:
    """Somebody else's token."""
    token = f"tilt_{name}_asks"
    holder = Principal(name, grants, fixed=True)
    world.tokens = (*TOKENS, Token(name, digest_of(token.encode()), holder))
    return token


async def begin(world: World, path: str = UPLOADS) -> str:
    """The id of a new upload."""
    response = await world.ask("POST", path, {})
    assert response.status_code == 200
    upload: str = response.json()["id"]
    return upload


async def send(world: World, upload: str, name: str, content: bytes, **given: Any) -> Any:
    """Send one file."""
    headers = {"content-type": "application/octet-stream", **given.pop("headers", {})}
    path = f"{UPLOADS}/{upload}/files/{name}"
    return await world.ask("PUT", path, content=content, headers=headers, **given)


async def upload(world: World, content: bytes = b"onnx", **files: bytes) -> str:
    """A whole upload."""
    name = await begin(world)
    for file, part in {"model.onnx": content, **files}.items():
        assert (await send(world, name, file, part)).status_code == 200
    return name


async def register(world: World, **document: Any) -> httpx.Response:
    """Ask for a version to be registered."""
    return await world.ask("POST", VERSIONS, document)


def staged(world: World, upload: str) -> list[str]:
    """What an upload holds on disk."""
    return sorted(path.name for path in Path(world.uploads.find(upload).folder).iterdir())


def placed(tmp_path: Path, model: str = MODEL) -> list[str]:
    """What the model store holds of a model, hidden things among it."""
    return sorted(path.name for path in (tmp_path / "models" / model).glob("*"))


async def test_an_upload_becomes_a_version(world: World, tmp_path: Path) -> None:
    """It gets the next number, lands in the model store, and is told with every check."""
    name = await upload(world, **{"version.toml": LINEAGE})
    response = await register(world, upload=name, lineage={"tags": {"tier": "gold"}}, reason="new")
    answer = response.json()
    assert response.status_code == 201
    assert (answer["version"], answer["changed"]) == (4, True)
    assert answer["checks"]["loads"]["summary"] == "It is as it should be."
    assert answer["review"]["registered_by"] == "wim"
    assert placed(tmp_path) == ["4"]
    assert (tmp_path / "models" / MODEL / "4" / "model.onnx").read_bytes() == b"onnx"
    entry = world.memory.entries[-1]
    assert (entry.action, entry.actor, entry.reason) == ("model.register", "wim", "new")
    assert [moved.target for moved in entry.also] == [f"reviews/{MODEL}/4"]
    manifest = world.memory.manifests[MODEL, 4]
    assert manifest.lineage["tags"] == {"team": "delays", "tier": "gold"}
    assert manifest.signature == world.inspector.signature


async def test_asked_twice_it_is_registered_once(world: World) -> None:
    """Who did not see the answer asks again and is told the same version, unchanged."""
    name = await upload(world)
    first = await register(world, upload=name)
    revision = world.registry.snapshot.revision
    for document in ({"upload": name}, {"upload": await upload(world)}):
        again = await register(world, **document)
        assert (again.status_code, again.json()["changed"]) == (200, False)
        assert again.json()["version"] == first.json()["version"]
    assert world.registry.snapshot.revision == revision
    assert len(world.inspector.orders) == 1


async def test_a_number_never_gets_other_bytes(world: World, tmp_path: Path) -> None:
    """M22: the same number with other bytes is a conflict; with the same, nothing happens."""
    first = await register(world, upload=await upload(world, b"one"), version=9)
    assert first.status_code == 201
    other = await register(world, upload=await upload(world, b"two"), version=9)
    assert other.status_code == 409
    assert "other bytes" in other.json()["error"]
    same = await register(world, upload=await upload(world, b"one"), version=9)
    assert (same.status_code, same.json()["changed"]) == (200, False)
    assert placed(tmp_path) == ["9"]
    assert (tmp_path / "models" / MODEL / "9" / "model.onnx").read_bytes() == b"one"


async def test_what_fails_a_check_leaves_nothing(world: World, tmp_path: Path) -> None:
    """A refusal names the failed checks, is written down once, and the store stays as it was."""
    world.inspector.changes = {Check.LOADS: FAILED}
    for _ in range(2):
        response = await register(world, upload=await upload(world))
        assert response.status_code == 400
        assert "loads: It takes too much memory." in response.json()["error"]
        assert response.json()["checks"]["loads"]["outcome"] == "failed"
    assert placed(tmp_path) == []
    assert list((tmp_path / "uploads").iterdir()) == []
    assert (MODEL, 4) not in world.memory.manifests
    refusals = [entry for entry in world.memory.entries if entry.action == "model.refuse"]
    assert [(entry.actor, entry.target) for entry in refusals] == [("wim", f"models/{MODEL}")]
    assert refusals[0].evidence["failed"] == {"loads": "It takes too much memory."}


async def test_a_version_that_only_gates_ask_about_is_registered(world: World) -> None:
    """What is not required is for gates to judge: it is registered with the failure in view."""
    world.inspector.changes = {Check.GOLDEN: CheckResult(Outcome.FAILED, "Off by 0.5.", 0.5)}
    response = await register(world, upload=await upload(world))
    assert response.status_code == 201
    golden = response.json()["review"]["checks"]["golden"]
    assert golden == {"outcome": "failed", "summary": "Off by 0.5.", "measure": 0.5}


async def test_a_folder_of_the_store_becomes_a_version(world: World, tmp_path: Path) -> None:
    """A source is read where it lies and copied to the version's own place."""
    folder = tmp_path / "models" / "candidates" / MODEL
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"candidate")
    response = await register(world, source=f"candidates/{MODEL}")
    assert (response.status_code, response.json()["version"]) == (201, 4)
    assert placed(tmp_path) == ["4"]
    own = tmp_path / "models" / MODEL / "7"
    own.mkdir()
    (own / "model.onnx").write_bytes(b"in place")
    response = await register(world, source=f"{MODEL}/7")
    assert (response.status_code, response.json()["version"]) == (201, 7)


@pytest.mark.parametrize(
    "source",
    [
        "../models",
        "/etc",
        "a/../../b",
        "http://169.254.169.254/",
        "file:///etc/passwd",
        "gopher://x",
        "s3://bucket/m",
        "a//b",
        "",
        ".",
        "%2e%2e/x",
        "a\\b",
        "/".join("abcdefghij"),
    ],
)
async def test_a_source_is_no_address(world: World, source: str) -> None:
    """M19: only a folder inside the model store is read; nothing else is even tried."""
    response = await register(world, source=source)
    assert response.status_code == 400


async def test_another_models_folder_is_not_for_everybody(world: World, tmp_path: Path) -> None:
    """Else who deploys one model could copy, and serve, what they may not even read of another."""
    for folder in (f"models/{MODEL}/9", "models/taxi/1", "models/incoming"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.onnx").write_bytes(folder.encode())
    token = add(world, "dan", Grant(Role.DEPLOYER, ("a-*",)))
    path = "/admin/v1/models/a-new/versions"
    for source in (f"{MODEL}/9", "taxi/1", f"{MODEL}/9/deeper", f"{MODEL}"):
        response = await world.ask("POST", path, {"source": source}, token=token)
        assert response.status_code == 403, response.text
    response = await world.ask("POST", path, {"source": "incoming"}, token=token)
    assert response.status_code == 201


@pytest.mark.parametrize(
    "name",
    ["..", " ..", "m%2F", "%2e%2e", "x" * 300, "%5C..%5C", "%252e%252e", "a%20b"],
)
async def test_a_model_has_a_proper_name(world: World, name: str, tmp_path: Path) -> None:
    """M20: no other name gets anywhere, on any path that writes."""
    for path, document in ((f"{name}/versions", {"source": "a"}), (f"{name}/uploads", {})):
        response = await world.ask("POST", f"/admin/v1/models/{path}", document)
        assert response.status_code in (400, 404)
    assert not (tmp_path / "uploads").exists()


@pytest.mark.parametrize("number", ["-1", "007", "1e3", "latest", str(2**63), "0", "%31%20"])
async def test_a_version_has_a_plain_number(world: World, number: str) -> None:
    """M21: in the path and in the body."""
    response = await world.ask("GET", f"{VERSIONS}/{number}")
    assert response.status_code == 400
    response = await world.ask("POST", f"{VERSIONS}/{number}/inspect", {})
    assert response.status_code == 400
    if number.lstrip("-").isdigit() and number != "007":
        response = await register(world, source="a", version=int(number))
        assert response.status_code == 400


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({}, "Name one of"),
        ({"upload": "x", "source": "y"}, "Name one of"),
        ({"upload": "x", "lineage": {"parent": "no"}}, "parent"),
        ({"upload": "x", "lineage": {"tags": {"a": 1}}}, "tags"),
        ({"upload": "x", "lineage": {"note": "n" * 70_000}}, "65536"),
        ({"upload": "x", "number": 3}, "number"),
    ],
)
async def test_a_wish_that_is_none_is_refused(world: World, document: Any, sentence: str) -> None:
    """A9 for registering: bounded, and told in words."""
    response = await world.ask("POST", VERSIONS, document)
    assert response.status_code in (400, 413)
    assert sentence in response.json()["error"]


async def test_an_upload_belongs_to_who_began_it(world: World) -> None:
    """Nobody adds to someone else's, or registers it, or reads a viewer's way in."""
    staged = world.uploads.begin(MODEL, "ana")
    assert (await send(world, staged.id, "model.onnx", b"x")).status_code == 403
    assert (await register(world, upload=staged.id)).status_code == 403
    assert (await world.ask("GET", f"{UPLOADS}/{staged.id}")).status_code == 403
    mine = await begin(world)
    assert (await send(world, mine, "model.onnx", b"x", token=READER)).status_code == 403
    other = await world.ask("GET", f"/admin/v1/models/other/uploads/{mine}")
    assert other.status_code == 404


async def test_a_digest_is_checked(world: World) -> None:
    """M16: a stated SHA-256 must be that of what came, in either header; else nothing is kept."""
    name = await begin(world)
    digest = hashlib.sha256(b"onnx")
    for headers in (
        {"x-sha256": digest.hexdigest()},
        {"digest": f"sha-256={b64encode(digest.digest()).decode()}"},
        {"content-digest": f"sha-256=:{b64encode(digest.digest()).decode()}:"},
    ):
        response = await send(world, name, "model.onnx", b"onnx", headers=headers)
        assert response.json() == {"name": "model.onnx", "size": 4, "sha256": digest.hexdigest()}
        wrong = await send(world, name, "weights", b"onnx!", headers=headers)
        assert wrong.status_code == 400
    for headers in ({"x-sha256": "short"}, {"digest": "sha-256=xx"}):
        assert (await send(world, name, "w", b"onnx", headers=headers)).status_code == 400
    shown = (await world.ask("GET", f"{UPLOADS}/{name}")).json()
    assert [file["name"] for file in shown["files"]] == ["model.onnx"]
    assert staged(world, name) == ["model.onnx"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "application/zip"}, 415),
        ({"content-encoding": "gzip"}, 415),
        ({"content-type": "application/octet-stream"}, 200),
    ],
)
async def test_a_file_comes_as_it_is(world: World, headers: dict[str, str], status: int) -> None:
    """M17: no archive, no form and no coding is ever opened."""
    name = await begin(world)
    response = await send(world, name, "model.onnx", b"PK\x03\x04", headers=headers)
    assert response.status_code == status


@pytest.mark.parametrize("file", ["..", "%2e%2e", "a%2Fb", ".hidden", "x" * 65, "a%20b", "%00"])
async def test_a_file_has_a_proper_name(world: World, file: str) -> None:
    """A name never leads out of the upload."""
    response = await send(world, await begin(world), file, b"x")
    assert response.status_code in (400, 404, 405)


async def test_a_large_file_is_written_in_parts(world: World) -> None:
    """Parts go to disk as they come: memory holds no more than one, and loops are not blocked."""
    name, parts = await begin(world), [bytes([at]) * 65_536 for at in range(48)]
    sizes: list[int] = []
    receive_from = iter(parts)
    grow = world.uploads.grow

    def noted(upload: str, size: int) -> None:
        sizes.append(size)
        grow(upload, size)

    world.uploads.grow = noted  # type: ignore[method-assign]
    left = len(parts)

    async def receive() -> Message:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": next(receive_from), "more_body": left > 0}

    status = await asked(world, f"{UPLOADS}/{name}/files/model.onnx", receive)
    assert status == 200
    assert max(sizes) <= PART_BYTES + 65_536
    content = (Path(world.uploads.find(name).folder) / "model.onnx").read_bytes()
    assert content == b"".join(parts)


async def test_a_caller_who_leaves_leaves_nothing(world: World) -> None:
    """What did not come whole is gone from the disk, and from the count of bytes."""
    name = await begin(world)
    messages: list[Message] = [
        {"type": "http.request", "body": b"x" * (2 << 20), "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    assert await asked(world, f"{UPLOADS}/{name}/files/model.onnx", receive) is None
    assert staged(world, name) == []
    assert (await send(world, name, "model.onnx", b"x" * (7 << 20))).status_code == 200


async def asked(world: World, path: str, receive: Any) -> int | None:
    """The status of a PUT whose body comes message by message; None if nobody was told."""
    sent: list[Message] = []

    async def send_(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {WRITER}".encode())]
    scope = {
        "type": "http",
        "method": "PUT",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "client": ("10.0.0.9", 1),
    }
    await world.app(scope, receive, send_)
    return sent[0]["status"] if sent else None


async def test_uploads_are_bounded(world: World) -> None:
    """One holds so much, all of them so much, so many are open, and none for ever."""
    first = await begin(world)
    assert (await send(world, first, "a", b"x" * (9 << 20))).status_code == 413
    assert (await send(world, first, "a", b"x" * (8 << 20))).status_code == 200
    second = await begin(world)
    assert (await send(world, second, "a", b"x" * (5 << 20))).status_code == 503
    # Nobody keeps all others out.
    assert (await world.ask("POST", UPLOADS, {})).status_code == 503
    token = add(world, "dan", Grant(Role.DEPLOYER))
    assert (await world.ask("POST", UPLOADS, {}, token=token)).status_code == 200
    assert (await world.ask("POST", UPLOADS, {}, token=token)).status_code == 503
    world.clock.at += 61
    assert (await world.ask("GET", f"{UPLOADS}/{first}")).status_code == 404
    assert (await world.ask("POST", UPLOADS, {})).status_code == 200


async def test_an_upload_can_be_discarded(world: World, tmp_path: Path) -> None:
    """Its files are gone."""
    name = await upload(world)
    assert (await world.ask("DELETE", f"{UPLOADS}/{name}")).json() == {"id": name}
    assert list((tmp_path / "uploads").iterdir()) == []


async def test_versions_are_found_by_their_lineage(world: World) -> None:
    """By tag, parent, commit and data; the newest first."""
    data = b'[[data]]\nlocation = "s3://rows"\nsha256 = "abcdef"\n'
    await register(world, upload=await upload(world, b"4", **{"version.toml": LINEAGE}))
    await register(world, upload=await upload(world, b"5", **{"version.toml": data}))

    async def found(**query: Any) -> list[int]:
        response = await world.ask("GET", VERSIONS, params=query)
        return [one["number"] for one in response.json()["versions"]]

    assert await found() == [5, 4, 3, 2, 1]
    assert await found(tag="team=delays") == await found(tag="team") == [4]
    assert await found(tag="team=other") == []
    assert await found(parent=3) == [4]
    assert await found(commit="c0ff") == [4]
    assert await found(data="s3://rows") == await found(data="abc") == [5]
    entry = (await world.ask("GET", VERSIONS, params={"tag": "team"})).json()["versions"][0]
    assert entry["checks"]["loads"] == "passed"
    assert entry["registered_by"] == "wim"


async def test_all_of_a_version_is_shown(world: World) -> None:
    """Manifest, Review and the whole report; one that was never inspected has none."""
    await register(world, upload=await upload(world))
    whole = (await world.ask("GET", f"{VERSIONS}/4", token=READER)).json()
    assert whole["review"]["report"]
    assert whole["inspection"]["tools"] == {"fake": "1"}
    assert whole["files"][0]["path"] == "model.onnx"
    before = (await world.ask("GET", f"{VERSIONS}/1")).json()
    assert before["review"] is before["inspection"] is None
    assert (await world.ask("GET", f"{VERSIONS}/77")).status_code == 404


async def test_ancestors_and_children_are_told(world: World) -> None:
    """A version's line goes back through its parents."""
    await register(world, upload=await upload(world, b"4", **{"version.toml": LINEAGE}))
    await register(world, upload=await upload(world, b"5", **{"version.toml": b"parent = 4"}))
    path = f"/admin/v1/models/{MODEL}/lineage"
    (five,) = (await world.ask("GET", path, params={"version": 5})).json()["versions"]
    assert (five["parent"], five["ancestors"]) == (f"{MODEL}/4", [4, 3])
    versions = (await world.ask("GET", path)).json()["versions"]
    assert {one["number"]: one.get("children", []) for one in versions}[3] == [4]


async def test_a_difference_is_told(world: World) -> None:
    """Between two registered versions; both must be named."""
    await register(world, upload=await upload(world, b"four", **{"version.toml": LINEAGE}))
    await register(world, upload=await upload(world, b"5"))
    path = f"/admin/v1/models/{MODEL}/diff"
    diff = (await world.ask("GET", path, params={"from": 4, "to": 5})).json()
    rows = {(row["section"], row["name"]): row["after"] for row in diff["differences"]}
    assert rows["lineage", "commit"] is None
    assert rows["size", "file model.onnx"] == 1
    assert (await world.ask("GET", path, params={"from": 4})).status_code == 400
    assert (await world.ask("GET", path, params={"from": 4, "to": 9})).status_code == 404


async def test_a_version_is_inspected_again(world: World) -> None:
    """New checks take the place of the old ones, approvals and who registered it stay."""
    await register(world, upload=await upload(world))
    world.inspector.changes = {Check.LATENCY: CheckResult(Outcome.FAILED, "Slow.", 99.0)}
    response = await world.ask("POST", f"{VERSIONS}/4/inspect", {"reason": "new machine"})
    assert response.json()["inspection"]["checks"]["latency"]["measure"] == 99.0
    review = world.registry.snapshot.reviews[f"{MODEL}/4"]
    assert review.checks[Check.LATENCY].outcome is Outcome.FAILED
    assert review.registered_by == "wim"
    assert world.memory.entries[-1].action == "model.inspect"
    assert (await world.ask("POST", f"{VERSIONS}/77/inspect", {})).status_code == 404


async def test_a_viewer_registers_nothing(world: World) -> None:
    """A4 for registering: reading is allowed, writing is not."""
    for method, path in (("POST", VERSIONS), ("POST", UPLOADS), ("POST", f"{VERSIONS}/1/inspect")):
        assert (await world.ask(method, path, {}, token=READER)).status_code == 403


async def test_a_store_that_is_away_registers_nothing(world: World, tmp_path: Path) -> None:
    """503, and nothing is left in the model store; the upload is kept for the next try."""
    name = await upload(world)
    world.memory.away = True
    assert (await register(world, upload=name)).status_code == 503
    world.memory.away = False
    assert placed(tmp_path) == []
    assert (await register(world, upload=name)).status_code == 201


async def test_a_promoted_version_is_known(world: World) -> None:
    """A8: what was refused or was never there cannot be promoted, and nothing changes."""
    world.inspector.changes = {Check.LOADS: FAILED}
    await register(world, upload=await upload(world))
    before = world.registry.snapshot.models
    response = await world.ask("POST", f"/admin/v1/models/{MODEL}/promote", {"version": 4})
    assert response.status_code == 404
    assert world.registry.snapshot.models == before
