"""Bad models from outside (M rows): refused with a sentence, and nobody who is served notices.

One gateway with a worker, inspection as it is by default but with short limits. Each row tells
what is refused and why; whatever it is, afterwards the champion answers, the same processes run,
and nothing is left.
"""

import hashlib
import io
import json
import os
import pickle
import re
import socket
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import httpx
import pytest
from onnx import ModelProto, helper

from tests import onnx_models as models
from tests.adapters.test_sandbox_files import with_functions, wrapped
from tests.e2e.gateways import Gateway, eventually, processes, resident_mib

pytestmark = [pytest.mark.e2e, pytest.mark.story, pytest.mark.timeout(180)]

Make: TypeAlias = Callable[[], ModelProto | bytes]

MODEL: Final = "m"
BASE: Final = "/admin/v1/models"
CHAMPION: Final = models.linear(100.0)
ONE_ROW: Final = [1.0, 2.0, 3.0, 4.0]
LIMITS: Final = {
    "TILTYARD_INSPECTION_MODE": "full",
    "TILTYARD_INSPECTION_RUN_S": "1",
    "TILTYARD_INSPECTION_TIME_S": "15",
    "TILTYARD_INSPECTION_MEMORY_MB": "1024",
    "TILTYARD_PROCESSES_HEARTBEAT_S": "4",
    "TILTYARD_POOL_INLINE_MS": "0",
    "TILTYARD_POOL_STUCK_S": "0.5",
    "TILTYARD_POOL_SPARE_THREADS": "1",
    "TILTYARD_POOL_ARENA_MB": "512",
    "TILTYARD_UPLOADS_MAX_OPEN": "4",
    # A model file must not configure its host, whatever the host's own environment says (M12).
    "ORT_LOAD_CONFIG_FROM_MODEL": "1",
}
LEAKS: Final = (
    "onnxruntime_src",
    "/onnxruntime",
    "/home",
    "/tmp",
    "/usr",
    "/proc",
    "site-packages",
    "Traceback",
)


class World:
    """A gateway that serves version 1, and how versions are brought to it."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "models"
        self.secret = folder / "secret.bin"
        self.secret.write_bytes(b"\x00\x00\x80\x3f" * 4)
        self.place(f"{MODEL}/1", CHAMPION)
        (self.store / MODEL / "model.toml").write_text("champion = 1", encoding="ascii")
        self.gateway = Gateway(folder / "state", self.store, LIMITS, workers=1).start()
        token = {"Authorization": f"Bearer {self.gateway.token}"}
        self.admin = httpx.Client(base_url=self.gateway.admin_url, headers=token, timeout=60)
        self.client = httpx.Client(base_url=self.gateway.url, timeout=60)
        self.processes = processes(self.gateway)
        self.lying = self.listed()

    def close(self) -> None:
        """Leave nothing running."""
        self.admin.close()
        self.client.close()
        self.gateway.close()

    def place(self, source: str, model: ModelProto | bytes, **files: bytes) -> Path:
        """Put a version's files into a folder of the model store."""
        target = self.store / source
        target.mkdir(parents=True)
        content = model if isinstance(model, bytes) else model.SerializeToString()
        for name, part in {"model.onnx": content, **files}.items():
            (target / name).write_bytes(part)
        return target

    def listed(self) -> list[str]:
        """What lies in the model store under the model's name, hidden things among it."""
        return sorted(path.name for path in (self.store / MODEL).iterdir())

    def send(self, content: ModelProto | bytes, model: str = MODEL, **files: bytes) -> str:
        """Upload a version; the upload's id."""
        whole = content if isinstance(content, bytes) else content.SerializeToString()
        upload: str = self.told(self.admin.post(f"{BASE}/{model}/uploads", json={}))["id"]
        for name, part in {"model.onnx": whole, **files}.items():
            self.told(self.admin.put(f"{BASE}/{model}/uploads/{upload}/files/{name}", content=part))
        return upload

    def register(self, model: str = MODEL, **document: Any) -> httpx.Response:
        """Ask for a version."""
        return self.admin.post(f"{BASE}/{model}/versions", json=document)

    def upload(self, content: ModelProto | bytes, model: str = MODEL) -> httpx.Response:
        """Upload and register; the upload is discarded where that was refused."""
        upload = self.send(content, model)
        response = self.register(model, upload=upload)
        self.discard(upload, model)
        return response

    def discard(self, upload: str, model: str = MODEL) -> None:
        """Leave nothing of an upload; it may be gone already."""
        dropped = self.admin.delete(f"{BASE}/{model}/uploads/{upload}")
        assert dropped.status_code in (200, 404), dropped.text

    def told(self, response: httpx.Response) -> dict[str, Any]:
        """The answer to what must not be refused."""
        assert response.is_success, response.text
        document: dict[str, Any] = response.json()
        return document

    def infer(self, model: str, datatype: str, data: list[Any], shape: list[int]) -> httpx.Response:
        """One inference."""
        tensor = {"name": "x", "datatype": datatype, "shape": shape, "data": data}
        return self.client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})

    def is_untouched(self) -> None:
        """The champion answers, the same processes run, and the model store is as it was."""
        assert self.client.get("/v2/health/live").status_code == 200
        answer = self.infer(MODEL, "FP32", ONE_ROW, [1, 4])
        assert answer.headers["x-model-version"] == "1"
        assert answer.json()["outputs"][0]["data"] == [110.0]
        assert processes(self.gateway) == self.processes
        assert self.listed() == self.lying
        assert not list((self.gateway.state / "uploads").glob("*"))
        listed = self.told(self.admin.get(f"{BASE}/{MODEL}/versions"))["versions"]
        assert [version["number"] for version in listed] == [1]

    def is_refused(self, response: httpx.Response, word: str) -> None:
        """With a sentence that says what for, and nothing of this host."""
        assert response.status_code == 400, response.text
        said = response.json()["error"]
        assert word in said
        assert said.isprintable()
        assert len(said) < 1_000
        assert not [leak for leak in LEAKS if leak in response.text], response.text
        self.is_untouched()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all rows."""
    made = World(tmp_path_factory.mktemp("bad-models"))
    yield made
    made.close()


def changed(model: ModelProto, **places: str) -> ModelProto:
    """A model whose external weights are told otherwise."""
    told = {one.key: one.value for one in model.graph.initializer[0].external_data} | places
    model.graph.initializer[0].ClearField("external_data")
    for key, value in told.items():
        model.graph.initializer[0].external_data.add(key=key, value=value)
    return model


def named(name: str) -> ModelProto:
    """A model whose input is called so."""
    model = models.identity()
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    return model


def alike() -> ModelProto:
    """A model with two inputs that differ by case only."""
    model = models.two_inputs()
    model.graph.input[1].name = model.graph.node[0].input[1] = "X"
    return model


def aged(ir_version: int, opset: int) -> ModelProto:
    """A model that says it is of such a time."""
    model = models.linear()
    model.ir_version, model.opset_import[0].version = ir_version, opset
    return model


def of_operator(name: str, domain: str) -> ModelProto:
    """A model of one operator."""
    model = models.identity()
    model.graph.node[0].op_type, model.graph.node[0].domain = name, domain
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def nested(depth: int) -> bytes:
    """Graphs in attributes of nodes of graphs."""
    node = b""
    for _ in range(depth):
        node = wrapped(5, wrapped(6, wrapped(1, node)))
    whole: bytes = models.linear().SerializeToString()
    return whole + wrapped(7, wrapped(1, node))


def always_gigantic() -> ModelProto:
    """A model of one product of matrices that takes half a minute, whatever it is asked."""
    model = models.heavy()
    model.graph.node.remove(model.graph.node[0])
    model.graph.initializer.append(helper.make_tensor("shape", 7, [2], [4_000, 4_000]))
    return model


def crashing() -> ModelProto:
    """Divides the lowest integer by -1 if it is given 1; on x86-64 that is a signal."""
    model = models.identity("INT64")
    for name, value in (("lowest", -(2**63)), ("two", 2)):
        model.graph.initializer.append(helper.make_tensor(name, 7, [1], [value]))
    model.graph.ClearField("node")
    model.graph.node.append(helper.make_node("Sub", ["x", "two"], ["less"]))
    model.graph.node.append(helper.make_node("Div", ["lowest", "less"], ["y"]))
    return model


class Loud:
    """What an unpickler would run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("pickled",)


def zipped() -> bytes:
    """An archive with a member that would lead out, and one that unfolds."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../unpacked", b"x")
        archive.writestr("model.onnx", bytes(10_000_000))
    return held.getvalue()


def tarred() -> bytes:
    """An archive with a link, a file through it, and a device."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for name, kind, link in (
            ("../../unpacked", tarfile.REGTYPE, ""),
            ("model", tarfile.SYMTYPE, "/etc"),
            ("model/unpacked", tarfile.REGTYPE, ""),
            ("device", tarfile.CHRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            archive.addfile(member)
    return held.getvalue()


def case(row: str, name: str, make: Make, word: str) -> Any:
    """A row of the list, what it is, and what the sentence must tell of it."""
    return pytest.param(make, word, id=f"{row} {name}")


NO_MODEL: Final = "format:"
BAD: Final = [
    case("M1", "outside", lambda: models.external("../secret.bin"), "external_data:"),
    case("M1", "absolute", lambda: models.external("/etc/passwd"), "external_data:"),
    case("M1", "roundabout", lambda: models.external("a/../../secret.bin"), "external_data:"),
    case(
        "M4", "in the folder where the process works", lambda: models.external("README.md"), "'w'"
    ),
    case(
        "M5",
        "beyond the end",
        lambda: changed(models.external("model.onnx"), length="1000000"),
        "'w'",
    ),
    case(
        "M5",
        "before the beginning",
        lambda: changed(models.external("model.onnx"), offset="-4"),
        "'w'",
    ),
    case("M6", "empty", lambda: b"", NO_MODEL),
    case("M6", "HTML", lambda: b"<html><body>Not found</body></html>", NO_MODEL),
    case("M6", "truncated", lambda: models.linear().SerializeToString()[:-9], NO_MODEL),
    case("M6", "random", lambda: bytes(range(256)) * 40, NO_MODEL),
    case("M7", "folding bomb", lambda: models.folding_bomb(2**33), "memory"),
    case("M9", "endless loop", models.forever, "longer than 1 s"),
    case("M10", "one gigantic operator", always_gigantic, "runs:"),
    case("M11", "custom operator", models.custom_operator, "example.custom"),
    case("M13", "long name", lambda: named("x" * 100_000), "names:"),
    case("M13", "line breaks", lambda: named("x\r\nSet-Cookie: a"), "names:"),
    case("M13", "terminal", lambda: named("\x1b[2J"), "names:"),
    case("M13", "path", lambda: named("../x"), "names:"),
    case("M13", "two alike", alike, "names:"),
    case("M14", "nesting", lambda: nested(5_000), NO_MODEL),
    case("M14", "recursion", lambda: with_functions(1, 3, around=True), "functions"),
    case("M14", "10^20 nodes", lambda: with_functions(10, 20), "functions"),
    case("M15", "IR of the future", lambda: aged(99, 17), NO_MODEL),
    case("M15", "opset of the future", lambda: aged(8, 999), NO_MODEL),
    case("M15", "EPContext", lambda: of_operator("EPContext", "com.microsoft"), "EPContext"),
    case("M17", "zip", zipped, NO_MODEL),
    case("M17", "tar", tarred, NO_MODEL),
    case("M18", "pickle", lambda: pickle.dumps(Loud()), NO_MODEL),
    case("M18", "joblib", lambda: b"ZF" + pickle.dumps([Loud()]), NO_MODEL),
    case("M18", "PyTorch", lambda: b"PK\x03\x04" + bytes(60), NO_MODEL),
    case("M14", "crash", crashing, "runs:"),
]


@pytest.mark.parametrize(("make", "word"), BAD)
def test_a_bad_version_is_refused_and_nobody_notices(world: World, make: Make, word: str) -> None:
    """M1 M4 M5 M6 M7 M9 M10 M11 M13 M14 M15 M17 M18 Sent over the network."""
    began = len(world.gateway.audit())
    response = world.upload(make())
    world.is_refused(response, word)
    checks = response.json()["checks"]
    assert [name for name, one in checks.items() if one["outcome"] == "failed"]
    assert [entry["action"] for entry in world.gateway.audit()[began:]] == ["model.refuse"]
    assert not list(world.store.parent.rglob("unpacked"))
    assert not Path("pickled").exists()


def test_links_and_folders_in_the_model_store_are_refused(world: World) -> None:
    """M2 M3 M6 Of either kind, and a folder in the place of the model, by their own names."""
    weights = models.external("weights")
    (world.place("candidates/symbolic", weights) / "weights").symlink_to(world.secret)
    os.link(world.secret, world.place("candidates/hard", weights) / "weights")
    folder = world.place("candidates/folder", b"")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()
    (world.store / "candidates" / "through").symlink_to(world.store / MODEL / "1")
    for name, word in (
        ("symbolic", "links are not followed"),
        ("hard", "another name elsewhere"),
        ("folder", "no regular file"),
        ("through", "leads over a link"),
    ):
        world.is_refused(world.register(source=f"candidates/{name}"), word)


def test_what_lies_in_the_model_store_is_held_to_the_same(world: World) -> None:
    """M1 M3 M6 M7 M11 It is told with its reason, promoted by nobody, and looked at no more."""
    bad: dict[int, ModelProto | bytes] = {
        2: models.external("../1/model.onnx"),
        3: b"<html>",
        4: models.folding_bomb(2**33),
        5: models.custom_operator(),
    }
    for number, content in bad.items():
        world.place(f"{MODEL}/{number}", content)
    os.link(world.secret, world.place(f"{MODEL}/6", models.external("weights")) / "weights")

    def refused() -> dict[int, str]:
        document = world.told(world.admin.get(f"{BASE}/{MODEL}"))
        return {one["version"]: one["reason"] for one in document["refused"]}

    eventually(lambda: len(refused()) == len(bad) + 1, 30)
    reasons = refused()
    for number, word in zip(
        range(2, 7), ("data", NO_MODEL, "memory", "domain", "name"), strict=True
    ):
        assert word in reasons[number]
        assert not [leak for leak in LEAKS if leak in reasons[number]]
        promoted = world.admin.post(f"{BASE}/{MODEL}/promote", json={"version": number})
        assert promoted.status_code == 404
    for number in range(2, 7):
        (world.store / MODEL / str(number)).rename(world.store.parent / f"gone-{number}")
    eventually(lambda: not refused())
    world.is_untouched()


def test_sizes_that_callers_choose_meet_a_cap(world: World) -> None:
    """M8 The version is good; 4 TB, an overflow and a negative size are not, and cost nothing."""
    assert world.upload(models.swelling(), "swelling").status_code == 201
    world.gateway.settle()
    good = world.infer("swelling", "INT64", [2, 3], [2])
    assert good.json()["outputs"][0]["shape"] == [2, 3]
    (worker,) = processes(world.gateway)["worker"]
    before = resident_mib(worker)
    for sizes, status in (
        ([2**20, 2**20], 413),
        ([2**62, 2**62], 413),
        ([2**31, 2**31], 413),
        ([2**15, 2**14], 413),
        ([-1, 5], 500),
    ):
        answer = world.infer("swelling", "INT64", sizes, [2])
        assert answer.status_code == status, answer.text
        assert not [leak for leak in LEAKS if leak in answer.text], answer.text
        assert resident_mib(worker) < before + 32
    world.is_untouched()


def test_a_model_does_not_configure_its_host(world: World) -> None:
    """M12 Not even where the host was started with the variable that would let it."""
    model = models.linear(1.0)
    wish = {"session_options": {"intra_op_num_threads": 16, "enable_profiling": True}}
    model.metadata_props.add(key="ort_config", value=json.dumps(wish))
    threads = {pid: _threads(pid) for pid in processes(world.gateway)["worker"]}
    assert world.upload(model, "configuring").status_code == 201
    world.gateway.settle()
    answer = world.infer("configuring", "FP32", ONE_ROW, [1, 4])
    assert answer.json()["outputs"][0]["data"] == [11.0]
    for pid, before in threads.items():
        assert _threads(pid) < before + 8
    for pids in processes(world.gateway).values():
        for pid in pids:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"ORT_LOAD_CONFIG_FROM_MODEL" not in environ
            assert b"ORT_DISABLE_TELEMETRY=1" in environ
    assert not list(Path.cwd().glob("onnxruntime_profile*"))


def test_a_digest_that_is_not_that_of_the_bytes_keeps_nothing(world: World) -> None:
    """M16 What came otherwise than it was sent is no file of the upload."""
    upload = world.told(world.admin.post(f"{BASE}/{MODEL}/uploads", json={}))["id"]
    path = f"{BASE}/{MODEL}/uploads/{upload}"
    headers = {"X-Sha256": hashlib.sha256(b"other").hexdigest()}
    sent = world.admin.put(f"{path}/files/model.onnx", content=b"bytes", headers=headers)
    assert sent.status_code == 400
    assert world.told(world.admin.get(path))["files"] == []
    world.discard(upload)
    world.is_untouched()


@pytest.mark.parametrize("media", ["application/zip", "application/gzip", "multipart/form-data"])
def test_no_archive_is_taken(world: World, media: str) -> None:
    """M17 A file comes alone and as it is."""
    upload = world.told(world.admin.post(f"{BASE}/{MODEL}/uploads", json={}))["id"]
    path = f"{BASE}/{MODEL}/uploads/{upload}"
    headers = {"Content-Type": media}
    sent = world.admin.put(f"{path}/files/bundle.zip", content=zipped(), headers=headers)
    assert sent.status_code == 415
    world.discard(upload)
    world.is_untouched()


@pytest.mark.parametrize(
    "address",
    ["http://{}/m", "http://169.254.169.254/m", "gopher://{}/m", "file:///etc/passwd", "//{}/m"],
)
def test_nobody_is_asked_for_a_version(world: World, address: str) -> None:
    """M19 An address in the place of a folder is refused; nobody connects to it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        source = address.format(f"127.0.0.1:{listening.getsockname()[1]}")
        world.is_refused(world.register(source=source), "folder")
        with pytest.raises(TimeoutError):
            listening.accept()
    assert world.register(upload=address).status_code in (400, 404)


NAMES: Final = [
    "..", "%2e%2e", "%252e%252e", "a%2F..%2Fb", "%5C..%5C", "..%5C", "%2Fetc", "m%2F", "%20..",
    "m%20", "%00", "x" * 300, "%E2%80%AE", "m%0d%0aX:y", "-m", "*",
]  # fmt: skip
ROUTES: Final = [
    ("GET", "admin", "/admin/v1/models/{}"),
    ("POST", "admin", "/admin/v1/models/{}/promote"),
    ("POST", "admin", "/admin/v1/models/{}/unload"),
    ("POST", "admin", "/admin/v1/models/{}/uploads"),
    ("POST", "admin", "/admin/v1/models/{}/versions"),
    ("GET", "admin", "/admin/v1/models/{}/lineage"),
    ("DELETE", "admin", "/admin/v1/endpoints/{}"),
    ("PUT", "admin", "/admin/v1/endpoints/{}"),
    ("POST", "serving", "/v2/models/{}/infer"),
    ("GET", "serving", "/v2/models/{}"),
    ("GET", "serving", "/v2/models/{}/versions/1/ready"),
    ("POST", "serving", "/v2/repository/models/{}/load"),
    ("POST", "serving", "/v2/repository/models/{}/unload"),
    ("POST", "serving", "/v1/models/{}:predict"),
]


def knock(world: World, port: int, method: str, path: str) -> tuple[int, bytes]:
    """Ask for a path exactly as it is written; the status and all that came."""
    body = (
        b'{"schema":1,"model":"m","version":1,"source":"x"}' if method in ("POST", "PUT") else b""
    )
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Authorization: Bearer {world.gateway.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
        peer.sendall(head.encode() + body)
        came = b""
        while part := peer.recv(65_536):
            came += part
    return int(came.split(b" ", 2)[1]), came


@pytest.mark.parametrize(("method", "door", "path"), ROUTES, ids=str)
def test_a_name_leads_nowhere_else(world: World, method: str, door: str, path: str) -> None:
    """M20 However it is spelled, on every path that names a model or an endpoint."""
    port = world.gateway.admin_port if door == "admin" else world.gateway.port
    for name in NAMES:
        status, came = knock(world, port, method, path.format(name))
        assert status in (400, 403, 404, 405), (name, status, came)
        assert b"\r\nX:y" not in came
        assert not [leak for leak in LEAKS if leak.encode() in came]
    world.is_untouched()


@pytest.mark.parametrize(
    "number", ["-1", "007", "1e3", "latest%2F..%2F1", str(2**63), "0", "%D9%A1"]
)
def test_a_version_is_a_plain_number(world: World, number: str) -> None:
    """M21 On every path that names a version, and in bodies."""
    for method, port, path in (
        ("POST", world.gateway.port, f"/v2/models/{MODEL}/versions/{number}/infer"),
        ("GET", world.gateway.port, f"/v2/models/{MODEL}/versions/{number}/ready"),
        ("GET", world.gateway.admin_port, f"{BASE}/{MODEL}/versions/{number}"),
        ("POST", world.gateway.admin_port, f"{BASE}/{MODEL}/versions/{number}/inspect"),
        ("POST", world.gateway.admin_port, f"{BASE}/{MODEL}/versions/{number}/approve"),
    ):
        status, came = knock(world, port, method, path)
        assert status in (400, 404), (path, came)
    for verb in ("promote", "load", "unload"):
        answer = world.admin.post(f"{BASE}/{MODEL}/{verb}", json={"version": number})
        assert answer.status_code == 400
    world.is_untouched()


def test_a_number_never_gets_other_bytes(world: World) -> None:
    """M22 409, and the version is what it was."""
    upload = world.send(models.linear(5.0))
    response = world.register(upload=upload, version=1)
    assert response.status_code == 409
    assert "other bytes" in response.json()["error"]
    world.discard(upload)
    world.is_untouched()


def test_callers_keep_their_tensors(world: World) -> None:
    """M23 Another signature is not promoted unless it is said that this is meant."""
    name = "signed"
    for content in (models.linear(1.0), models.two_inputs()):
        assert world.upload(content, name).status_code == 201
    asked = {"version": 2, "reason": "new"}
    refused = world.admin.post(f"{BASE}/{name}/promote", json=asked)
    assert refused.status_code == 409
    assert "signature" in refused.json()["error"]
    meant = {**asked, "allow_signature_change": True}
    assert world.admin.post(f"{BASE}/{name}/promote", json=meant).status_code == 200


def test_a_gate_is_closed_for_what_cannot_be_relied_on(world: World) -> None:
    """M24 Answers that change, or are no numbers, or are not the expected ones."""
    name = "odd"
    rules = [{"check": check} for check in ("determinism", "finite", "golden")]
    document = {"schema": 1, "models": [name], "promotion": {"checks": rules}}
    world.told(world.admin.put("/admin/v1/gates/odd", json=document))
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": ONE_ROW}]}
    one = {"name": "one", "request": request, "expected": {"y": ONE_ROW}}
    golden = json.dumps({"schema": 1, "golden": [one]})
    for number, (content, failed) in enumerate(
        [(models.dice(), "determinism"), (models.root(), "finite"), (models.root(), "golden")], 1
    ):
        upload = world.send(content, name, **{"golden.json": golden.encode(), "n": bytes([number])})
        assert world.register(name, upload=upload).status_code == 201
        refused = world.admin.post(f"{BASE}/{name}/promote", json={"version": number})
        assert refused.status_code == 409
        assert failed in str(refused.json()["missing"])


def test_the_parser_is_in_the_sandbox_only(world: World) -> None:
    """M25 Neither control nor a worker has the library loaded, after all of these rows."""
    for pids in processes(world.gateway).values():
        for pid in pids:
            assert "/onnx/onnx_cpp2py_export" not in Path(f"/proc/{pid}/maps").read_text()


def test_refusing_takes_no_memory(world: World) -> None:
    """Control is as large after a hundred refused uploads as it was after ten."""
    (control,) = processes(world.gateway)["control"]
    content = bytes(300_000)
    for turn in range(110):
        if turn == 10:
            before = resident_mib(control)
        assert world.upload(content + bytes([turn])).status_code == 400
    assert resident_mib(control) < before + 32
    world.is_untouched()


def test_one_gigantic_operator_costs_a_worker_and_no_more(world: World) -> None:
    """M10 No wish to stop is heard inside of a kernel: the worker is replaced, and serves on."""
    assert world.upload(models.heavy(), "heavy").status_code == 201
    world.gateway.settle()
    assert world.infer("heavy", "INT64", [2], [1]).status_code == 200
    (before,) = processes(world.gateway)["worker"]
    with socket.create_connection(("127.0.0.1", world.gateway.port), timeout=30) as peer:
        tensor = {"name": "x", "datatype": "INT64", "shape": [1], "data": [4_500]}
        body = json.dumps({"inputs": [tensor]}).encode()
        head = f"POST /v2/models/heavy/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}"
        peer.sendall(head.encode() + b"\r\n\r\n" + body)
        for _ in range(3):
            assert httpx.get(f"{world.gateway.url}/v2/health/live", timeout=3).status_code == 200
            answer = world.infer(MODEL, "FP32", ONE_ROW, [1, 4])
            assert answer.json()["outputs"][0]["data"] == [110.0]
        try:
            came = peer.recv(65_536)
        except ConnectionResetError:
            came = b""
        assert not came or re.match(rb"HTTP/1.1 50[34] ", came), came
    eventually(lambda: processes(world.gateway)["worker"] not in ([], [before]), 30)
    eventually(world.gateway.is_ready)
    eventually(lambda: world.infer(MODEL, "FP32", ONE_ROW, [1, 4]).status_code == 200)
    assert processes(world.gateway)["control"] == world.processes["control"]


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
