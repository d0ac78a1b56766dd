import os
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto

from gateway.adapters.onnx import OnnxLoader, describe, trim_memory
from gateway.adapters.onnx.engine import inner_call
from gateway.adapters.onnx.loading import open_session, session_options
from gateway.core.errors import (
    DeadlineExceeded,
    EngineFailed,
    GatewayError,
    InvalidRequest,
    TooLarge,
)
from gateway.core.tensors import DTYPES, TensorSpec
from gateway.ports import Artifact, Stop
from gateway.serving.warming import warm
from gateway.settings import PoolSettings
from tests import onnx_models as models
from tests.adapters.onnx_parts import loaded, one, output_of, rows
from tests.fakes import manifest_of

VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "UINT8": [0, 2**8 - 1],
    "UINT16": [0, 2**16 - 1],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "INT8": [-(2**7), 2**7 - 1],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP16": [0.5, -65504.0],
    "FP32": [0.1, -3.4e38],
    "FP64": [0.1, -1.7e308],
    "BYTES": [b"", "grüße".encode(), b"with\0nul", b"x" * 1_000],
}


@pytest.mark.parametrize("datatype", sorted(DTYPES))
@pytest.mark.parametrize("shape", [("N",), ("N", 1)], ids=str)
def test_every_datatype_comes_out_as_it_went_in(
    datatype: str, shape: tuple[str | int, ...], tmp_path: Path
) -> None:
    """Values, datatype and shape survive a run, to the last of the range."""
    engine = loaded(models.identity(datatype, shape), tmp_path)
    tensor = np.array(VALUES[datatype], DTYPES[datatype]).reshape([-1] + [1] * (len(shape) - 1))
    output = one(engine, x=tensor)
    assert (output.dtype, output.shape) == (DTYPES[datatype], tensor.shape)
    assert output.tolist() == tensor.tolist()
    assert engine.signature.inputs[0].datatype == datatype


@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BOOL"])
def test_a_tensor_may_be_a_scalar(datatype: str, tmp_path: Path) -> None:
    """Without a dimension there is one element."""
    engine = loaded(models.identity(datatype, ()), tmp_path)
    output = one(engine, x=np.array(VALUES[datatype][0], DTYPES[datatype]))
    assert (output.shape, output.tolist()) == ((), pytest.approx(VALUES[datatype][0]))
    assert not engine.signature.batched


@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "INT64"])
def test_a_tensor_may_be_empty(datatype: str, tmp_path: Path) -> None:
    """No rows in, no rows out."""
    engine = loaded(models.identity(datatype, ("N", 2)), tmp_path)
    assert one(engine, x=np.empty((0, 2), DTYPES[datatype])).shape == (0, 2)


def test_text_that_is_none_is_the_callers_fault(tmp_path: Path) -> None:
    """The engine holds text, so other bytes are refused before the run."""
    engine = loaded(models.identity("BYTES", ("N",)), tmp_path)
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        one(engine, x=np.array([b"\xff"], dtype=object))


def test_tensors_that_may_not_be_written_to_are_run(tmp_path: Path) -> None:
    """Requests are read-only views of their bodies."""
    engine = loaded(models.linear(bias=1.0), tmp_path)
    view = np.frombuffer(rows(1.0, 2.0).tobytes(), "<f4").reshape(2, 4)
    assert not view.flags.writeable
    assert one(engine, x=view).tolist() == [[5.0], [9.0]]


def test_outputs_come_in_the_order_asked_for(tmp_path: Path) -> None:
    """Each name gets its own tensor."""
    engine = loaded(models.two_outputs(), tmp_path)
    negative, same = engine.run({"x": rows(2.0)}, ["negative", "same"])
    assert (float(negative[0, 0]), float(same[0, 0])) == (-2.0, 2.0)


def test_one_engine_runs_in_several_threads(tmp_path: Path) -> None:
    """Runs at the same time do not mix."""
    engine = loaded(models.linear(), tmp_path)
    with ThreadPoolExecutor(4) as threads:
        outputs = threads.map(lambda i: one(engine, x=rows(float(i))), range(200))
        assert [float(output[0, 0]) for output in outputs] == [4.0 * i for i in range(200)]


def test_a_failed_run_tells_nothing_of_the_inside(tmp_path: Path) -> None:
    """The sentence has no source line and no path; the cause is kept for the log."""
    engine = loaded(models.failing(), tmp_path)
    with pytest.raises(EngineFailed) as caught:
        one(engine, x=np.array([7], np.int64))
    assert str(caught.value) == "The model failed to run on this input."
    assert caught.value.__cause__ is not None
    assert one(engine, x=np.array([2], np.int64)).tolist() == [[4.0, 5.0]]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(2**13, 2**12 + 1, id="B13 an answer above 128 MiB"),
        pytest.param(2**21, 2**21, id="B13 16 TiB"),
    ],
)
def test_an_answer_that_is_too_large_is_the_callers_fault(
    first: int, second: int, tmp_path: Path
) -> None:
    """B13 What a small input makes huge is refused, and the error keeps nothing of it."""
    engine = loaded(models.swelling(), tmp_path)
    with pytest.raises(TooLarge) as caught:
        one(engine, x=np.array([first, second]))
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    assert not any(frame.f_locals.get("results") for frame in frames)
    assert one(engine, x=np.array([2, 3])).shape == (2, 3)


@pytest.mark.parametrize(
    ("model", "shape", "batched"),
    [
        pytest.param(models.linear(), (-1, 4), True, id="linear"),
        pytest.param(models.identity("FP32", ("N", None)), (-1, -1), True, id="free"),
        pytest.param(models.identity("FP32", (None, 4)), (-1, 4), True, id="unnamed"),
        pytest.param(models.identity("FP32", (2, 4)), (2, 4), False, id="fixed"),
        pytest.param(models.identity("FP32", ()), (), False, id="scalar"),
        pytest.param(models.scalar(), (-1, 4), False, id="scalar-output"),
        pytest.param(models.two_inputs(), (-1, 4), True, id="two-inputs"),
        pytest.param(models.two_inputs(("M", 4)), (-1, 4), False, id="two-names"),
        pytest.param(models.two_inputs((1, 4)), (-1, 4), False, id="one-fixed"),
    ],
)
def test_a_signature_says_whether_there_are_rows(
    model: ModelProto, shape: tuple[int, ...], batched: bool, tmp_path: Path
) -> None:
    """Only where every tensor's first dimension is free and the same may rows stand together."""
    signature = describe(models.save(model, tmp_path))
    assert (signature.inputs[0].shape, signature.batched) == (shape, batched)


def test_free_dimensions_keep_their_names(tmp_path: Path) -> None:
    """A name that stands twice must have one extent in a request."""
    signature = describe(models.save(models.identity("FP32", ("N", "M", 3)), tmp_path))
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, -1, 3), symbols=("N", "M", None))
    assert signature.inputs == (spec,)


def test_warming_finds_what_may_share_a_run(tmp_path: Path) -> None:
    """A linear model may, one that looks at all its rows may not, whatever its shape says."""
    assert warm(loaded(models.linear(), tmp_path), time.perf_counter_ns).rows_independent
    mean = warm(loaded(models.batch_mean(), tmp_path), time.perf_counter_ns)
    assert not mean.rows_independent
    assert mean.note is not None


def test_warming_tells_the_slow_from_the_fast(tmp_path: Path) -> None:
    """A model that computes for long takes longer than a model that does not."""
    fast = warm(loaded(models.identity(), tmp_path), time.perf_counter_ns)
    slow = warm(loaded(models.slow(), tmp_path), time.perf_counter_ns)
    assert slow.timings[0].ns > 5 * fast.timings[0].ns


def test_a_model_that_fails_on_synthetic_input_is_still_warm(tmp_path: Path) -> None:
    """An index within the table is run, so this one is even fast."""
    warmth = warm(loaded(models.failing(), tmp_path), time.perf_counter_ns)
    assert warmth.rows_independent


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<!doctype html><html></html>", id="html"),
        pytest.param(b"\x80\x04\x95\x10\x00\x00\x00", id="pickle"),
        pytest.param(bytes(range(256)) * 40, id="random"),
        pytest.param(models.linear().SerializeToString()[:-30], id="truncated"),
        pytest.param(models.custom_operator().SerializeToString(), id="custom-operator"),
        pytest.param(models.sequence().SerializeToString(), id="sequence"),
    ],
)
def test_a_file_that_cannot_be_served_gives_a_clean_sentence(
    content: bytes, tmp_path: Path
) -> None:
    """Neither the path nor the words of onnxruntime are repeated."""
    folder = tmp_path / "secret-place"
    folder.mkdir()
    path = folder / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest) as caught:
        describe(str(path))
    with pytest.raises(EngineFailed) as failed:
        OnnxLoader(1)(Artifact(manifest_of(), str(path)))
    for error in (caught.value, failed.value):
        told(error)


def told(error: GatewayError) -> None:
    """Hold a sentence against what none may hold."""
    sentence = str(error)
    assert sentence.endswith(".")
    assert sentence.isprintable()
    assert len(sentence) < 250
    for secret in ("secret-place", "onnxruntime_src", ".onnx", ".cc", "/"):
        assert secret not in sentence


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "folder"])
def test_a_file_that_is_not_there_gives_a_clean_sentence(missing: bool, tmp_path: Path) -> None:
    """A folder is no file either."""
    path = tmp_path / "secret-place"
    if not missing:
        path.mkdir()
    with pytest.raises(EngineFailed) as caught:
        OnnxLoader(1)(Artifact(manifest_of(), str(path)))
    told(caught.value)


def test_odd_names_are_made_harmless(tmp_path: Path) -> None:
    """A name from the file stands in a sentence only as printable text."""
    model = models.sequence()
    model.graph.output[0].name = "y\r\n\x1b[31m" + "x" * 500
    model.graph.node[0].output[0] = model.graph.output[0].name
    with pytest.raises(InvalidRequest) as caught:
        describe(models.save(model, tmp_path))
    told(caught.value)


def test_a_model_that_is_not_what_its_manifest_says_is_not_served(tmp_path: Path) -> None:
    """The signature of the file is held against the one that was registered."""
    path = models.save(models.two_outputs(), tmp_path)
    with pytest.raises(EngineFailed, match="not the one in its manifest"):
        OnnxLoader(1)(Artifact(manifest_of(), path))


@pytest.mark.parametrize("way", ["../weights.bin", "a/../../weights.bin", "absolute", "symlink"])
def test_weights_outside_the_models_folder_are_refused(way: str, tmp_path: Path) -> None:
    """External data are read below the model's own folder only."""
    outside = tmp_path / "weights.bin"
    outside.write_bytes(np.ones(4, np.float32).tobytes())
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    location = {"absolute": str(outside), "symlink": "link.bin"}.get(way, way)
    if way == "symlink":
        (folder / "link.bin").symlink_to(outside)
    path = models.save(models.external(location), folder)
    with pytest.raises(InvalidRequest) as caught:
        describe(path)
    told(caught.value)


def test_weights_beside_the_model_are_read(tmp_path: Path) -> None:
    """A model may keep its weights in a file of its own."""
    (tmp_path / "weights.bin").write_bytes(np.full(4, 2.0, np.float32).tobytes())
    engine = loaded(models.external("weights.bin"), tmp_path)
    assert one(engine, x=rows(1.0)).tolist() == [[8.0]]


def test_a_tiny_file_cannot_ask_for_gigabytes_at_load(tmp_path: Path) -> None:
    """Constants that would unfold to half a gigabyte are not folded."""
    path = models.save(models.folding_bomb(128 * 1024 * 1024), tmp_path)
    assert Path(path).stat().st_size < 500
    script = (
        "import resource, sys\n"
        "from gateway.adapters.onnx import describe\n"
        "def peak_kib(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak_kib()\n"
        "describe(sys.argv[1])\n"
        "print(peak_kib() - before)\n"
    )
    assert int(output_of(script, path)) < 200 * 1024


def test_a_session_is_made_from_a_path_with_what_it_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes no core of the host by itself, does not spin or fall back, and keeps no bytes."""
    made: list[tuple[Any, Any, dict[str, Any]]] = []
    real = onnxruntime.InferenceSession

    def session(path: str, options: Any, **given: Any) -> Any:
        made.append((path, options, given))
        return real(path, options, **given)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    path = models.save(models.linear(), tmp_path)
    OnnxLoader(3)(Artifact(manifest_of(signature=describe(path)), path))
    opened, options, given = made[-1]
    assert opened == path
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert given["enable_fallback"] == 0
    assert given["providers"] == ["CPUExecutionProvider"]


def test_nothing_phones_home() -> None:
    """Telemetry is off before onnxruntime is imported, and a model cannot configure its host."""
    script = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'onnxruntime':\n"
        "            print(os.environ.get('ORT_DISABLE_TELEMETRY'),"
        " os.environ.get('ORT_LOAD_CONFIG_FROM_MODEL'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import gateway.adapters.onnx\n"
    )
    environ = {**os.environ, "ORT_LOAD_CONFIG_FROM_MODEL": "1"}
    environ.pop("ORT_DISABLE_TELEMETRY", None)
    assert output_of(script, environ=environ) == "1 None\n"


def test_memory_can_be_given_back() -> None:
    """Trimming is safe at any time."""
    trim_memory()


@pytest.mark.parametrize(
    ("model", "inner"),
    [
        pytest.param(models.linear(), True, id="the same both ways"),
        pytest.param(models.identity("BYTES", ("N",)), True, id="texts"),
        pytest.param(models.failing(), True, id="an index"),
        pytest.param(models.dice(), False, id="never the same"),
    ],
)
def test_the_inner_run_is_used_where_it_does_as_the_public_one(
    model: ModelProto, inner: bool, tmp_path: Path
) -> None:
    """It is private, so it must show that it is still what it was."""
    path = models.save(model, tmp_path)
    session = open_session(path, session_options(1))
    assert (inner_call(session, describe(path)) != session.run) is inner


def test_without_an_inner_run_models_are_run_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another onnxruntime may have none, or one that takes other arguments."""

    class Outer:
        def __init__(self, *arguments: Any, **given: Any) -> None:
            self._real = real(*arguments, **given)

        def __getattr__(self, name: str) -> Any:
            if name == "_sess":
                raise AttributeError(name)
            return getattr(self._real, name)

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", Outer)
    engine = loaded(models.linear(bias=1.0), tmp_path)
    assert one(engine, x=rows(1.0)).tolist() == [[5.0]]


class Watched(Stop):
    """Tells when a run has taken it."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = threading.Event()

    def connect(self, end: Callable[[], None]) -> None:
        super().connect(end)
        self.taken.set()


def test_a_run_without_an_end_can_be_stopped(tmp_path: Path) -> None:
    """M9 Another thread ends it between two nodes, and the next run is not touched by that."""
    engine, stop = loaded(models.forever(), tmp_path), Watched()
    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(engine.run_until, {"x": rows(-1.0)}, ["y"], stop)
        assert stop.taken.wait(20)
        stop.stop()
        with pytest.raises(DeadlineExceeded) as caught:
            run.result(20)
    told(caught.value)
    assert one(engine, x=rows(1.0)).tolist() == rows(1.0).tolist()
    assert engine.run_until({"x": rows(2.0)}, ["y"], Stop())[0].tolist() == rows(2.0).tolist()


def test_a_run_that_is_stopped_before_it_begins_does_not_begin(tmp_path: Path) -> None:
    """A deadline may pass between the queue and the run."""
    engine, stop = loaded(models.forever(), tmp_path), Stop()
    stop.stop()
    with pytest.raises(DeadlineExceeded):
        engine.run_until({"x": rows(-1.0)}, ["y"], stop)


def test_a_stoppable_run_fails_as_any_other(tmp_path: Path) -> None:
    """What nobody stopped is not told as stopped; texts are texts there too."""
    engine = loaded(models.failing(), tmp_path)
    with pytest.raises(EngineFailed, match="failed to run"):
        engine.run_until({"x": np.array([7], np.int64)}, ["y"], Stop())
    words = loaded(models.identity("BYTES", ("N",)), tmp_path)
    given = np.array([b"a", b"b"], dtype=object)
    assert words.run_until({"x": given}, ["y"], Stop())[0].tolist() == [b"a", b"b"]


@pytest.mark.parametrize(
    ("threads", "warned"), [(1, False), (2, False), (4, True)], ids=["one", "fit", "too-many"]
)
def test_more_threads_than_cores_are_told(
    threads: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers times runs times threads should be no more than the cores; a setting stands."""
    settings = PoolSettings(intra_op_threads=threads, executor_threads=2, arena_mb=0)
    OnnxLoader.of(settings, workers=2, cores=8)
    assert ("intra_op_threads" in caplog.text) is warned
