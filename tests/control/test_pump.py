from gateway.control.pump import Pump
from gateway.core.evidence import SIGHTING, Sightings
from gateway.core.experiments import Phase, study_of
from gateway.serving.cells import Cells
from gateway.serving.recording import Recorder
from gateway.settings import RecordingSettings
from tests.experiments import EVEN, experiment_of
from tests.records import make_record


def test_sightings_are_carried_where_nobody_wants_records() -> None:
    """Experiments need no collector."""
    recorder = Recorder(Cells(), RecordingSettings())
    kept: list[Sightings] = []
    pump = Pump(recorder, None, (), kept.append)
    assert not recorder.enabled

    study = study_of("x", experiment_of(), Phase(7, 0.0, 10_000, EVEN))
    recorder.record(make_record(variant="control", study=study, unit_hash=bytes(16)))
    pump.carry()
    pump.carry()

    (seen,) = kept
    assert SIGHTING.unpack(seen.units)[:3] == (7, bytes(16), 0)
    assert recorder.pending == 0
