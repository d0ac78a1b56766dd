from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from gateway.core.errors import EngineFailed
from gateway.core.tensors import DTYPES, Array, Signature, Tensors, TensorSpec
from gateway.ports import Stop
from gateway.serving.warming import LONG_NS, TIMED_RUNS, WARM_ROWS, Timing, synthetic, warm
from tests.fakes import FakeEngine, NanoClock, signature_of


class Function:
    """An engine that is one function of `x`."""

    def __init__(self, answer: Callable[[Array], Array], signature: Signature) -> None:
        self.answer = answer
        self.signature = signature

    def run(self, tensors: Tensors, outputs: Sequence[str]) -> list[Array]:
        return [self.answer(tensors["x"])]

    def run_until(self, tensors: Tensors, outputs: Sequence[str], stop: Stop) -> list[Array]:
        return self.run(tensors, outputs)


def of(datatype: str, *shape: int, batched: bool = True) -> Signature:
    """A signature from `x` of a shape to `y` of the same."""
    x, y = (TensorSpec(name=name, datatype=datatype, shape=shape) for name in "xy")
    return Signature(inputs=(x,), outputs=(y,), batched=batched)


def still() -> int:
    """A clock that stands."""
    return 0


@pytest.mark.parametrize("datatype", sorted(DTYPES))
@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_synthetic_rows_differ_whatever_their_datatype_and_width(
    datatype: str, columns: int
) -> None:
    """Two neighbouring rows are never equal, so that a mix-up of rows is seen."""
    rows = synthetic(of(datatype, -1, columns), 3)["x"]
    assert (rows.shape, rows.dtype) == ((3, columns), DTYPES[datatype])
    assert not (rows[0] == rows[1]).all()
    assert not (rows[1] == rows[2]).all()


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BYTES", "BOOL"])
def test_synthetic_input_may_be_a_scalar(datatype: str) -> None:
    """An input without dimensions gets one element."""
    tensor = synthetic(of(datatype, batched=False), 1)["x"]
    assert (tensor.shape, tensor.dtype) == ((), DTYPES[datatype])


def test_synthetic_input_fits_the_signature() -> None:
    """Fixed extents are kept, the first free one is the rows, others get a small extent."""
    signature = of("FP32", -1, 3, -1)
    assert synthetic(signature, 5)["x"].shape == (5, 3, 4)
    assert synthetic(of("FP32", 7, 300, batched=False), 1)["x"].shape == (7, 300)
    assert synthetic(of("INT32", 7, 300, batched=False), 1)["x"].shape == (7, 300)


def test_a_model_whose_rows_are_independent_may_share_runs() -> None:
    """Rows that come out the same together and singly may stand in one run."""
    warmth = warm(FakeEngine(), still)
    assert (warmth.rows_independent, warmth.note) == (True, None)


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64", "UINT8"])
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda x: x * 0 + x.mean(), id="mean"),
        pytest.param(lambda x: x * 0 + x.max(), id="max"),
        pytest.param(lambda x: x.cumsum(axis=0), id="running-sum"),
        pytest.param(lambda x: x[::-1], id="reversed"),
        pytest.param(lambda x: x * 0 + len(x), id="count"),
    ],
)
def test_a_model_whose_rows_depend_on_each_other_never_shares_runs(
    answer: Callable[[Array], Array], columns: int, datatype: str
) -> None:
    """A dependence between rows is found, also where inputs are integers."""
    signature = of(datatype, -1, columns)
    engine = Function(lambda x: answer(x * 2).astype(x.dtype), signature)
    warmth = warm(engine, still)
    assert not warmth.rows_independent
    assert "differ" in str(warmth.note)


def test_outputs_of_another_length_for_each_row_never_share_runs() -> None:
    """Rows with outputs of unlike extents cannot be joined; the version is served all the same."""
    engine = Function(lambda x: np.ones((len(x), 1 + int(x[0, 0] > 0.5))), of("FP32", -1, 1))
    assert not warm(engine, still).rows_independent


def test_rounding_is_no_dependence() -> None:
    """Last bits may differ between a run of two and two runs of one."""
    engine = Function(lambda x: x + np.float32(1e-6) * len(x), of("FP32", -1, 4))
    assert warm(engine, still).rows_independent


def test_not_a_number_equals_itself() -> None:
    """A model that answers NaN for each row is not called dependent for it."""
    engine = Function(lambda x: x * np.float32("nan"), of("FP32", -1, 4))
    assert warm(engine, still).rows_independent


def test_a_model_without_a_batch_dimension_never_shares_runs() -> None:
    """That is its signature, and no finding."""
    warmth = warm(Function(lambda x: x, of("FP32", 2, 4, batched=False)), still)
    assert (warmth.rows_independent, warmth.note, warmth.timings) == (
        False,
        None,
        (Timing(1, 8, 0),),
    )


def test_a_model_that_refuses_synthetic_input_is_alone_and_not_timed() -> None:
    """Such a model is served all the same, in a thread, one request for each run."""

    def refuse(_: Array) -> Array:
        raise EngineFailed("Not this.")

    warmth = warm(Function(refuse, signature_of()), still)
    assert (warmth.rows_independent, warmth.timings) == (False, ())
    assert "refused" in str(warmth.note)


def test_the_fastest_of_a_few_runs_of_each_size_is_told() -> None:
    """The first, slow runs do not count."""
    clock = NanoClock()
    costs = iter([100, 60, 50, 70, 80] * len(WARM_ROWS))

    class Timed(FakeEngine):
        def run(self, tensors: Any, outputs: Any) -> list[Array]:
            clock.at_ns += next(costs, 0)
            return super().run(tensors, outputs)

    engine = Timed()
    warmth = warm(engine, clock.monotonic_ns)
    assert warmth.timings == tuple(Timing(rows, 4 * rows, 50) for rows in WARM_ROWS)
    assert [len(rows) for rows in engine.runs[:-3]] == [
        rows for rows in WARM_ROWS for _ in range(TIMED_RUNS)
    ]


def test_a_long_run_is_neither_timed_again_nor_made_longer() -> None:
    """A slow model is warmed by one run, so that loading it does not take for ever."""
    clock = NanoClock()

    class Long(FakeEngine):
        def run(self, tensors: Any, outputs: Any) -> list[Array]:
            clock.at_ns += LONG_NS + 1
            return super().run(tensors, outputs)

    engine = Long()
    warmth = warm(engine, clock.monotonic_ns)
    assert warmth.timings == (Timing(1, 4, LONG_NS + 1),)
    assert [len(rows) for rows in engine.runs] == [1, 2, 1, 1]
    assert warmth.rows_independent
