import threading

from msgspec.structs import replace

from gateway.core.errors import EngineFailed
from gateway.core.predictions import SigningKeys
from gateway.telemetry import CONFIG_REVISION, MODEL_STATE, MODEL_SWAP_COUNT
from tests.fakes import FakeEngine
from tests.planes import KEYS, SECRETS, Plane, model_of, snapshot_of, until

ONE, TWO = ("m", 1), ("m", 2)


async def test_a_report_says_what_is_served() -> None:
    """The revision handed over, each endpoint's own, and the state of each version."""
    with Plane({ONE: FakeEngine(), TWO: EngineFailed("It is broken.")}) as plane:
        await plane.serve(snapshot_of(4, models={"m": model_of(1, 2, loaded=(2,))}))
        report = plane.worker.report()
        assert (report.revision, report.ready) == (4, True)
        assert {name: one.revision for name, one in report.endpoints.items()} == {"m": 4}
        versions = {(one.number, one.state, one.reason) for one in report.versions}
        assert versions == {(1, "ready", None), (2, "failed", "It is broken.")}


async def test_a_stopping_process_is_not_ready_and_still_serves() -> None:
    """Balancers are told first; what still comes is answered."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(snapshot_of())
        plane.worker.stopping = True
        assert not plane.worker.ready
        assert (await plane.ask(plane.call(1.0))).error is None


async def test_new_signing_keys_are_used_at_once() -> None:
    """After a rotation ids are signed by the new key, and old ones still read."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(snapshot_of())
        old = (await plane.ask(plane.call(1.0))).prediction_id
        rotated = SigningKeys(1, 2, {**KEYS.keys, 2: "44" * 32}, KEYS.unit_key)
        plane.worker.entrust(replace(SECRETS, keys=rotated))
        new = (await plane.ask(plane.call(1.0))).prediction_id
        signer = plane.worker.signer
        assert signer is not None
        assert old is not None
        assert new is not None
        assert signer.read(old).version == signer.read(new).version == 1


async def test_the_same_keys_make_no_new_signer() -> None:
    """Handing over the same keys with other tokens keeps the signer."""
    with Plane({}) as plane:
        signer = plane.worker.signer
        plane.worker.entrust(replace(SECRETS, tokens=()))
        assert plane.worker.signer is signer
        assert plane.worker.secrets is not None
        assert plane.worker.secrets.tokens == ()


async def test_statistics_are_those_that_were_asked_for() -> None:
    """All versions of all models, of one model, or one version."""
    engines = {ONE: FakeEngine(), TWO: FakeEngine(), ("n", 1): FakeEngine()}
    with Plane(engines) as plane:
        models = {"m": model_of(1, 2, loaded=(2,)), "n": model_of(1)}
        await plane.serve(snapshot_of(models=models))
        await plane.ask(plane.call(1.0, 2.0))

        def rows(model: str | None, version: int | None) -> list[tuple[str, str, int]]:
            return [
                (row["name"], row["version"], row["inference_count"])
                for row in plane.worker.statistics(model, version)
            ]

        assert rows(None, None) == [("m", "1", 2), ("m", "2", 0), ("n", "1", 0)]
        assert rows("m", None) == [("m", "1", 2), ("m", "2", 0)]
        assert rows("m", 2) == [("m", "2", 0)]


async def test_the_state_of_each_version_is_a_gauge() -> None:
    """One for the state that a version is in and none for others, also after it was closed."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        await plane.serve(snapshot_of(1, models={"m": model_of(1, 2, loaded=(2,))}))
        assert shown(plane) == {(1, "ready"), (2, "ready")}
        await plane.serve(snapshot_of(2, models={"m": model_of(1, 2)}))
        await until(lambda: shown(plane) == {(1, "ready"), (2, "closed")})
        assert plane.count(CONFIG_REVISION) == 2


async def test_a_swap_is_counted_when_it_happens() -> None:
    """An endpoint that moves to other versions counts once, and not while it lags."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        await plane.serve(snapshot_of(1, models={"m": model_of(1, 2)}))
        plane.gates[TWO] = threading.Event()
        plane.apply(snapshot_of(2, models={"m": model_of(1, 2, champion=2)}))
        assert plane.count(MODEL_SWAP_COUNT) == 0
        plane.gates[TWO].set()
        await plane.settled()
        assert plane.count(MODEL_SWAP_COUNT, key="m") == 1


def shown(plane: Plane) -> set[tuple[object, object]]:
    """Version and state of each gauge that is up."""
    return {
        (labels["tiltyard.model.version"], labels["tiltyard.model.state.name"])
        for series in plane.cells.collect()
        if series.instrument is MODEL_STATE and series.value
        for labels in (dict(series.attributes),)
    }
