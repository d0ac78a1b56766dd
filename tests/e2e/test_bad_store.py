"""A spoilt store from outside: whatever Redis holds, the last good Snapshot serves on."""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import redis

from tests.e2e.gateways import Gateway, eventually, free_port, is_complete
from tests.e2e.valkeys import ValkeyProcess
from tests.onnx_models import linear, save

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

SNAPSHOT = "{tiltyard}:snapshot"
EVENTS = "{tiltyard}:events"
INFER = "/v2/models/e/infer"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
SUMS = {"1": 110.0, "2": 210.0}
UNITS = [f"unit-{number}" for number in range(300)]
RULE = ("endpoints", "e", "document", "rules", 0)
FIRST = (*RULE, "split", "variants", 0)


def weights(*shares: int) -> dict[str, Any]:
    """A split of champion against version 2."""
    names = ("control", "treatment", "third")
    variants = [
        {"name": name, "version": 2 if name == "treatment" else 1, "weight": share}
        for name, share in zip(names, shares, strict=False)
    ]
    return {
        "schema": 1,
        "model": "m",
        "rules": [{"name": "ab", "split": {"exposure": 10_000, "variants": variants}}],
    }


class World:
    """A gateway, its store, and how both are put right again."""

    def __init__(self, folder: Path) -> None:
        """Start both with a model of two versions."""
        for number in (1, 2):
            version = folder / "models" / "m" / str(number)
            version.mkdir(parents=True)
            save(linear(100.0 * number), version)
        (folder / "models" / "m" / "model.toml").write_text("champion = 1")
        self.valkey = ValkeyProcess(folder / "valkey", free_port())
        self.valkey.start()
        env = {"TILTYARD_REDIS_URL": self.valkey.url, "TILTYARD_REDIS_POLL_S": "0.1"}
        self.gateway = Gateway(folder / "state", folder / "models", env).start()
        self.redis: Any = redis.Redis.from_url(self.valkey.url)
        self.client = httpx.Client(base_url=self.gateway.url, timeout=30)
        shown = {"Authorization": f"Bearer {self.gateway.token}"}
        self.admin = httpx.Client(base_url=self.gateway.admin_url, timeout=30, headers=shown)
        self.put(weights(5_000, 5_000))
        self.good: dict[str, Any] = json.loads(self.redis.get(SNAPSHOT) or b"")

    def close(self) -> None:
        """Leave nothing running."""
        self.client.close()
        self.admin.close()
        self.redis.close()
        self.gateway.close()
        self.valkey.kill()

    @property
    def status(self) -> dict[str, Any]:
        """What the gateway says of itself."""
        status: dict[str, Any] = self.admin.get("/admin/v1/status").json()
        return status

    def settle(self) -> None:
        """Wait until the newest revision is served whole."""
        eventually(lambda: is_complete(self.status))

    def rejected(self) -> dict[str, Any]:
        """The document that is refused now, once there is one."""
        eventually(lambda: self.status["rejected"])
        found: dict[str, Any] = self.status["rejected"]
        return found

    def ask(self, unit: str | None = None, **headers: str) -> httpx.Response:
        """One inference, which must be answered and be that of the version it names."""
        named = {} if unit is None else {"X-Unit-Id": unit}
        answer = self.client.post(INFER, json=BODY, headers={**named, **headers})
        assert answer.status_code == 200, answer.text
        (value,) = answer.json()["outputs"][0]["data"]
        assert value == SUMS[answer.headers["x-model-version"]]
        return answer

    def variants(self) -> dict[str, str]:
        """The variant of every unit."""
        return {unit: self.ask(unit).headers["x-variant"] for unit in UNITS}

    def put(self, document: dict[str, Any], name: str = "e") -> None:
        """Put an endpoint and wait until it is served."""
        response = self.gateway.ask("PUT", f"/admin/v1/endpoints/{name}", document)
        assert response.is_success, response.text
        revision = int(response.headers["x-revision"])
        eventually(lambda: self.status["revision"] >= revision)
        self.settle()

    def write(self, document: dict[str, Any] | str | bytes) -> None:
        """Put anything where the Snapshot is, past the gateway."""
        raw = json.dumps(document) if isinstance(document, dict) else document
        self.redis.set(SNAPSHOT, raw)

    def changed(self, *path: str | int, to: Any) -> dict[str, Any]:
        """The next revision of the good document, with one thing changed."""
        document: dict[str, Any] = json.loads(json.dumps(self.good))
        document["revision"] = self.status["revision"] + 1
        place: Any = document
        for step in path[:-1]:
            place = place[step]
        if to is None:
            del place[path[-1]]
        else:
            place[path[-1]] = to
        return document

    def heal(self) -> None:
        """Write the good document as the newest revision, and wait until it is served."""
        self.redis.delete(SNAPSHOT)
        document = self.changed("schema", to=1)
        self.write(document)
        eventually(lambda: self.status["revision"] == document["revision"])
        self.settle()
        status = self.status
        assert (status["alarms"], status["rejected"]) == ({}, None)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One gateway and one store for all that is done here."""
    made = World(tmp_path_factory.mktemp("bad-store"))
    yield made
    made.close()


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    """Both in good order, before and after."""
    yield shared
    shared.heal()


Spoil = Callable[[World], Any]


def put(raw: str | bytes) -> Spoil:
    """Write these bytes."""
    return lambda world: world.write(raw)


def change(*path: str | int, to: Any = None) -> Spoil:
    """Write the next revision with one thing changed, or taken out."""
    return lambda world: world.write(world.changed(*path, to=to))


def weight(number: str) -> Spoil:
    """Write the next revision with literal text as the first weight."""

    def spoil(world: World) -> None:
        text = json.dumps(world.changed(*FIRST, "weight", to="@"))
        world.write(text.replace('"@"', number))

    return spoil


def torn(world: World) -> None:
    """Write the first half of the next revision."""
    text = json.dumps(world.changed("schema", to=1))
    world.write(text[: len(text) // 2])


def zipped(world: World) -> None:
    """Write the next revision, compressed."""
    world.write(gzip.compress(json.dumps(world.changed("schema", to=1)).encode()))


REFUSED: dict[str, tuple[Spoil, str]] = {
    "R1 not JSON": (put("rules: []"), "cannot be read"),
    "R1 truncated": (torn, "cannot be read"),
    "R1 nothing": (put(b""), "cannot be read"),
    "R1 200 MB": (lambda world: world.redis.setrange(SNAPSHOT, 200_000_000, "x"), "at most"),
    "R1 not UTF-8": (put(b'{"schema":1,"revision":99999,"\xff":1}'), "cannot be read"),
    "R1 gzip": (zipped, "cannot be read"),
    "R2 negative": (weight("-1"), "weight -1 of 'control'"),
    "R2 NaN": (weight("NaN"), "cannot be read"),
    "R2 1e308": (weight("1e308"), "cannot be read"),
    "R2 10^308": (weight("1" + "0" * 308), "is not 0 to 10000"),
    "R2 sum 9999": (weight("4999"), "add up to 9999"),
    "R2 all zero": (
        change(*RULE, "split", "variants", to=[{"name": "a", "version": 1, "weight": 0}]),
        "add up to 0",
    ),
    "R2 text": (weight('"5000"'), "`str`"),
    "R2 bool": (weight("true"), "`bool`"),
    "R2 10^-12": (weight("1e-12"), "`float`"),
    "R3 missing": (change(*FIRST, "weight"), "weight"),
    "R6 missing version": (change(*FIRST, "version", to=99), "names version 99"),
    "R8 2^63": (change("revision", to=2**63), "counted from"),
    "R8 float": (change("revision", to=1e6), "`float`"),
    "R8 text": (change("revision", to="99999"), "`str`"),
    "R9 a clock field": (change(*RULE, "starts_at", to="2030-01-01"), "starts_at"),
    "R10 a regex": (
        change(*RULE, "when", to=[{"header": "h", "regex": "(a+)+$"}]),
        "regex",
    ),
    "R12 a shared salt": (
        lambda world: world.write(with_twin(world)),
        "share a salt",
    ),
    "R13 a shadow of itself": (
        change(
            "endpoints",
            "e",
            "document",
            to={
                "schema": 1,
                "model": "m",
                "default": {"version": 1},
                "shadows": [{"name": "s", "share": 1, "version": 1}],
            },
        ),
        "shadow itself",
    ),
    "R15 a model's name": (change("models", "a}:x", to={"versions": {}}), "cannot name a model"),
    "R15 an endpoint's name": (
        lambda world: world.write(world.changed("endpoints", "*", to=world.good["endpoints"]["e"])),
        "cannot name an endpoint",
    ),
}


def with_twin(world: World) -> dict[str, Any]:
    """The next revision with a second endpoint whose split has the same salt."""
    return world.changed("endpoints", "twin", to=world.good["endpoints"]["e"])


@pytest.mark.parametrize(("spoil", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_served_is_refused(world: World, spoil: Spoil, reason: str) -> None:
    """The status names the document and the fault, and every unit is served as before."""
    before = world.status["revision"]
    served = {unit: world.ask(unit).headers["x-variant"] for unit in UNITS[:20]}
    spoil(world)
    rejected = world.rejected()
    assert reason in rejected["reason"]
    assert len(rejected["sha256"]) == 64
    assert {unit: world.ask(unit).headers["x-variant"] for unit in served} == served
    status = world.status
    assert (status["revision"], status["ready"]) == (before, True)
    refused = world.admin.post("/admin/v1/models/m/promote", json={"version": 2})
    assert refused.status_code == 503


def test_the_refused_revision_is_named(world: World) -> None:
    """R1 The status shows which revision was refused, where the document states one."""
    revision = world.status["revision"] + 1
    world.write(world.changed(*FIRST, "weight", to=-1))
    assert world.rejected()["revision"] == revision
    world.write("{")
    eventually(lambda: world.rejected()["revision"] is None)


def test_a_key_of_another_type_is_told(world: World) -> None:
    """R1 A list where the Snapshot was leaves serving alone and is named by the server's code."""
    world.redis.delete(SNAPSHOT)
    world.redis.rpush(SNAPSHOT, "x")
    eventually(lambda: "WRONGTYPE" in (world.status["store"]["reason"] or ""))
    world.ask("u")


LOST: dict[str, Spoil] = {
    "R7 lower revision": lambda world: world.write({**world.good, "revision": 1}),
    "R7 epoch 0": lambda world: world.write({**world.changed("schema", to=1), "epoch": 0}),
    "R7 deleted": lambda world: world.redis.delete(SNAPSHOT),
    "R7 expired": lambda world: world.redis.pexpire(SNAPSHOT, 1),
}


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST.keys())
def test_lost_data_is_an_alarm(world: World, lose: Spoil) -> None:
    """What went back or vanished is never served, and nothing is committed over it."""
    before = world.status["revision"]
    lose(world)
    eventually(lambda: world.status["alarms"] or world.status["rejected"])
    status = world.status
    assert status["rejected"] or "data_loss" in status["alarms"]
    assert (status["revision"], status["ready"]) == (before, True)
    world.ask("u")
    refused = world.admin.post("/admin/v1/models/m/promote", json={"version": 2})
    assert refused.status_code == 503


def test_an_emptied_store_is_an_alarm(world: World) -> None:
    """R7 FLUSHALL takes nothing from who is served, and what comes back is taken over."""
    kept = {key: world.redis.dump(key) for key in world.redis.scan_iter() if b"process" not in key}
    world.redis.flushall()
    assert "data_loss" in eventually(lambda: world.status["alarms"])
    world.ask("u")
    for key, value in kept.items():
        world.redis.restore(key, 0, value, replace=True)
    eventually(lambda: world.status["alarms"] == {})


def test_a_revision_may_jump_forward(world: World) -> None:
    """R8 A much higher revision is newer, and is served."""
    world.write({**world.changed("schema", to=1), "revision": world.status["revision"] + 9_999_999})
    eventually(lambda: world.status["revision"] > 9_999_999)
    world.settle()
    assert int(world.ask("u").headers["x-revision"]) > 9_999_999


def test_a_forged_twin_is_an_alarm(world: World) -> None:
    """R7 Another document under the revision that is served is not taken over."""
    twin = world.changed("revision", to=world.status["revision"])
    twin["models"]["m"]["aliases"]["champion"] = 2
    world.write(twin)
    assert "divergence" in eventually(lambda: world.status["alarms"])
    assert world.client.post("/v2/models/m/infer", json=BODY).headers["x-model-version"] == "1"


def test_a_version_whose_files_are_nowhere_keeps_the_last_plan(world: World) -> None:
    """R6 A plan that names a version nobody has is reported as lagging, and the last one serves."""
    document = world.changed("models", "m", "versions", "9", to="0" * 64)
    document["endpoints"]["e"]["document"]["rules"][0]["split"]["variants"][1]["version"] = 9
    before = world.ask(UNITS[0]).headers["x-variant"]
    world.write(document)
    eventually(lambda: world.status["endpoints"]["e"]["lagging"])
    assert world.ask(UNITS[0]).headers["x-variant"] == before
    assert "m/9" in json.dumps(world.status)


PUT_REFUSED: dict[str, tuple[Any, str]] = {
    "R2 negative": (weights(-1, 10_001), "weight -1"),
    "R2 sum 9999": (weights(4_999, 5_000), "add up to 9999"),
    "R2 all zero": (weights(0, 0), "add up to 0"),
    "R3 missing": (
        {"schema": 1, "model": "m", "rules": [{"name": "r", "split": {
            "exposure": 10_000, "variants": [{"name": "a", "version": 1}]}}]},
        "weight",
    ),
    "R6 missing version": (
        {"schema": 1, "model": "m", "default": {"version": 99}}, "names version 99",
    ),
    "R9 end before start": (
        {"schema": 1, "model": "m", "rules": [{"name": "r", "serve": {"version": 1},
            "starts_at": "2030-01-02", "ends_at": "2030-01-01"}]},
        "starts_at",
    ),
    "R10 regex": (
        {"schema": 1, "model": "m", "rules": [{"name": "r", "serve": {"version": 1},
            "when": [{"header": "h", "regex": "(a+)+$"}]}]},
        "regex",
    ),
    "R13 shadow of itself": (
        {"schema": 1, "model": "m", "default": {"version": 1},
            "shadows": [{"name": "s", "share": 1, "version": 1}]},
        "shadow itself",
    ),
    "R13 shadow of a shadow": (
        {"schema": 1, "model": "m", "shadows": [
            {"name": "s", "share": 1, "version": 2, "shadows": []}]},
        "shadows",
    ),
    "R13 shadow of an endpoint": (
        {"schema": 1, "model": "m", "shadows": [{"name": "s", "share": 1, "endpoint": "e"}]},
        "endpoint",
    ),
    "R13 fallback to a rule": (
        {"schema": 1, "model": "m", "rules": [
            {"name": "r", "serve": {"version": 1}, "on_error": "r"}]},
        "on_error",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("document", "says"), PUT_REFUSED.values(), ids=PUT_REFUSED.keys())
def test_a_wrong_document_is_refused_at_the_admin_api(
    world: World, document: dict[str, Any], says: str
) -> None:
    """Nothing of it reaches the store; the sentence says where the fault is."""
    before = world.redis.get(SNAPSHOT)
    response = world.gateway.ask("PUT", "/admin/v1/endpoints/e", document)
    assert response.status_code == 400
    assert says in response.json()["error"]
    assert world.redis.get(SNAPSHOT) == before


def test_two_endpoints_may_not_share_a_salt(world: World) -> None:
    """R12 The salt of another endpoint's split is refused, so draws stay independent."""
    document = weights(5_000, 5_000)
    document["rules"][0]["split"]["salt"] = world.good["endpoints"]["e"]["splits"]["ab"]["salt"]
    response = world.gateway.ask("PUT", "/admin/v1/endpoints/other", document)
    assert response.status_code == 400
    assert "share a salt" in response.json()["error"]


def test_splits_draw_independently(world: World) -> None:
    """R12 Where a unit stands in one endpoint's split says nothing of where in another's."""
    world.put(weights(5_000, 5_000), "other")
    mine = world.variants()
    both = Counter(
        (
            mine[unit],
            world.client.post(
                "/v2/models/other/infer", json=BODY, headers={"X-Unit-Id": unit}
            ).headers["x-variant"],
        )
        for unit in UNITS
    )
    # Four cells of 75 expected; five standard deviations are 37.
    assert all(38 <= count <= 112 for count in both.values())
    assert len(both) == 4


def test_weight_zero_gets_nothing(world: World) -> None:
    """R3 Zero is a weight: its variant answers nobody."""
    world.put(weights(10_000, 0))
    assert set(world.variants().values()) == {"control"}


def test_an_edit_replaces_the_whole_document(world: World) -> None:
    """R4 After an edit no weight or rule of the earlier document decides anything."""
    world.put(weights(0, 10_000))
    assert set(world.variants().values()) == {"treatment"}
    world.put({"schema": 1, "model": "m"})
    assert set(world.variants().values()) == {"default"}


def test_an_edit_moves_only_the_difference(world: World) -> None:
    """R5 From 50:50 to 60:40, units move to the variant that grew, about a tenth, and no other."""
    before = world.variants()
    world.put(weights(6_000, 4_000))
    after = world.variants()
    moved = Counter((before[unit], after[unit]) for unit in UNITS if before[unit] != after[unit])
    assert set(moved) == {("treatment", "control")}
    # 30 expected; five standard deviations are 26.
    assert 4 <= moved["treatment", "control"] <= 56


def test_a_rule_that_looks_like_a_regex_is_plain_text(world: World) -> None:
    """R10 `(a+)+$` matches those six characters only, and a hostile value costs nothing."""
    when = [{"header": "X-Plan", "equals": "(a+)+$"}]
    prefix = [{"header": "X-Plan", "prefix": "^.*"}]
    world.put(
        {
            "schema": 1,
            "model": "m",
            "rules": [
                {"name": "plain", "when": when, "serve": {"version": 2}},
                {"name": "front", "when": prefix, "serve": {"version": 2}},
            ],
        }
    )
    assert world.ask(**{"X-Plan": "(a+)+$"}).headers["x-variant"] == "plain"
    assert world.ask(**{"X-Plan": "^.*x"}).headers["x-variant"] == "front"
    for value in ("aaaa", "a" * 4_000 + "!", "x^.*"):
        answer = world.ask(**{"X-Plan": value})
        assert answer.headers["x-variant"] == "default"
        assert answer.elapsed.total_seconds() < 2


def test_a_unit_of_64_kb_is_refused(world: World) -> None:
    """R11 A unit of more than 1,024 bytes names nobody; the answer does not repeat it."""
    for size in (1_025, 65_536):
        answer = world.client.post(INFER, json=BODY, headers={"X-Unit-Id": "u" * size})
        assert answer.status_code in (400, 431)
        assert "u" * 65 not in answer.text
    world.ask("u")


def test_units_are_bytes(world: World) -> None:
    """R11 Two spellings of one letter are two units: each keeps its variant, whatever the other."""
    pairs = set()
    for number in range(60):
        drawn = []
        for name in (f"\u00e9{number}", f"e\u0301{number}"):
            headers = [(b"X-Unit-Id", name.encode())]
            (variant,) = {
                world.client.post(INFER, json=BODY, headers=headers).headers["x-variant"]
                for _ in range(2)
            }
            drawn.append(variant)
        pairs.add(tuple(drawn))
    assert len(pairs) == 4


def test_without_a_unit_each_request_is_a_draw(world: World) -> None:
    """R11 A missing or empty unit is drawn afresh each time, so both variants come."""
    for headers in ({}, {"X-Unit-Id": ""}):
        drawn = {world.ask(**headers).headers["x-variant"] for _ in range(60)}
        assert drawn == {"control", "treatment"}


def test_forged_messages_cost_little_and_change_nothing(world: World) -> None:
    """R14 Ten thousand forged messages, some of a megabyte, cause a few reads and no change."""
    before = world.status["revision"]
    world.redis.config_resetstat()
    with world.redis.pipeline(transaction=False) as pipe:
        for number in range(10_000):
            pipe.publish(EVENTS, str(10_000_000 + number))
        pipe.execute()
    for _ in range(5):
        world.redis.publish(EVENTS, b"\xff" * 1024 * 1024)
    world.redis.publish(EVENTS, json.dumps(world.changed("revision", to=2**62)))
    for _ in range(50):
        world.ask("u")
    assert world.status["revision"] == before
    # One read for each poll of 0.1 s and at most twenty a second for hints, however many come.
    reads = world.redis.info("commandstats")["cmdstat_getrange"]["calls"]
    assert reads < 200
    world.put(weights(9_000, 1_000))


@pytest.mark.parametrize("name", ["a}:x", "a b", "*", "a\r\nSET x y", "{tiltyard}:snapshot"])
def test_a_name_cannot_become_a_key(world: World, name: str) -> None:
    """R15 A name that could break out of a key is refused, and no key comes of it."""
    before = {key for key in world.redis.scan_iter() if b"process" not in key}
    response = world.gateway.ask(
        "PUT", f"/admin/v1/endpoints/{quote(name, safe='')}", {"schema": 1, "model": "m"}
    )
    assert response.status_code in (400, 404)
    response = world.gateway.ask("PUT", "/admin/v1/endpoints/other", {"schema": 1, "model": name})
    assert response.status_code == 400
    assert {key for key in world.redis.scan_iter() if b"process" not in key} == before
