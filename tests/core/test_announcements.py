"""What audit entries say to others."""

from typing import Any

import msgspec
import pytest
from cloudevents.http import from_json
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.announcements import (
    Aliases,
    EventType,
    alert_event,
    encode_event,
    events_of,
    ping_event,
    shown,
    source_of,
)
from gateway.core.audit import AuditEntry, Moved
from tests.announcing import entry_of, review_moved

SOURCE = source_of("tiltyard")
PASSING = {"files": "passed", "loads": "passed", "golden": "skipped"}
MODEL = {"versions": {"1": "1" * 64, "2": "2" * 64}, "aliases": {"champion": 2}}


def told(entry: AuditEntry, **before: dict[str, int]) -> list[tuple[str, str]]:
    """Types and subjects of an entry's events."""
    known = {f"models/{name}": Aliases(named) for name, named in before.items()}
    return [(event.type.value, event.subject) for event in events_of(entry, SOURCE, known)]


def test_a_registration_tells_the_version_and_its_checks() -> None:
    """Two events of one entry, with ids of their own."""
    entry = entry_of("model.register", document=MODEL, also=(review_moved(2, PASSING),))
    first, second = events_of(entry, SOURCE, {"models/m": Aliases({"champion": 2})})
    assert (first.id, second.id) == ("1-42", "1-42-2")
    assert (first.type, second.type) == (EventType.VERSION_REGISTERED, EventType.CHECKS_PASSED)
    assert first.data["digest"] == "2" * 64
    assert second.data["checks"] == PASSING


def test_a_failed_check_is_told_with_its_name() -> None:
    """Also of a version that was registered all the same."""
    entry = entry_of("model.inspect", also=(review_moved(2, {**PASSING, "golden": "failed"}),))
    (event,) = events_of(entry, SOURCE, {})
    assert event.type is EventType.CHECKS_FAILED
    assert event.data["failed"] == ["golden"]


def test_a_refused_version_is_a_failed_check() -> None:
    """Nothing was registered; the evidence says what failed."""
    evidence = {"number": 3, "digest": "3" * 64, "failed": ["loads"]}
    (event,) = events_of(entry_of("model.refuse", evidence=evidence), SOURCE, {})
    assert (event.type, event.subject) == (EventType.CHECKS_FAILED, "models/m/versions/3")
    assert event.data["failed"] == ["loads"]


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        ("model.promote", "tiltyard.version.promoted"),
        ("model.rollback", "tiltyard.version.rolled_back"),
        ("apply", "tiltyard.version.promoted"),
    ],
)
def test_an_alias_that_moved_is_told_whatever_moved_it(action: str, kind: str) -> None:
    """With both versions, where the one before is known."""
    entry = entry_of(action, document=MODEL)
    assert told(entry, m={"champion": 1}) == [(kind, "models/m/versions/2")]
    assert told(entry, m={"champion": 2}) == []
    assert [one for one, _ in told(entry)] == ([kind] if action != "apply" else [])


def test_a_step_that_promotes_tells_both() -> None:
    """The experiment's decision, and the version that everybody gets now."""
    entry = entry_of(
        "experiment.step",
        "experiments/x",
        document={"state": "promoted", "document": {"endpoint": "m"}},
        also=(Moved("models/m", "b", "a", MODEL),),
    )
    assert told(entry, m={"champion": 1}) == [
        ("tiltyard.experiment.decided", "experiments/x"),
        ("tiltyard.version.promoted", "models/m/versions/2"),
    ]


@pytest.mark.parametrize(
    ("action", "state", "kinds"),
    [
        ("experiment.start", "running", ["tiltyard.experiment.started"]),
        ("experiment.step", "running", []),
        ("experiment.step", "rolled_back", ["tiltyard.experiment.rolled_back"]),
        ("experiment.stop", "stopped", ["tiltyard.experiment.ended"]),
        ("experiment.rollback", "rolled_back", ["tiltyard.experiment.rolled_back"]),
    ],
)
def test_experiments_are_told_when_they_begin_and_end(
    action: str, state: str, kinds: list[str]
) -> None:
    """A change of weights is not news."""
    entry = entry_of(action, "experiments/x", document={"state": state})
    assert [kind for kind, _ in told(entry)] == kinds


@pytest.mark.parametrize(
    ("action", "target", "kind"),
    [
        ("model.approve", "reviews/m/2", "tiltyard.approval.given"),
        ("model.unapprove", "reviews/m/2", "tiltyard.approval.withdrawn"),
        ("wish.put", "wishes/m/champion", "tiltyard.promotion.requested"),
        ("wish.drop", "wishes/m/champion", "tiltyard.promotion.withdrawn"),
        ("model.retire", "models/m", "tiltyard.version.retired"),
        ("access.denied", "models/m", "tiltyard.access.denied"),
    ],
)
def test_each_decision_of_people_is_told(action: str, target: str, kind: str) -> None:
    """By its own type."""
    assert [one for one, _ in told(entry_of(action, target, document={"version": 2}))] == [kind]


def test_a_gate_passed_by_force_is_told_besides() -> None:
    """An event of its own, and a mark on the other."""
    evidence = {"override": True, "missing": [{"gate": "g", "sentence": "one approval"}]}
    entry = entry_of("model.promote", document=MODEL, evidence=evidence)
    first, second = events_of(entry, SOURCE, {"models/m": Aliases({"champion": 1})})
    assert first.data["override"] is True
    assert second.type is EventType.GATE_OVERRIDDEN
    assert second.data["missing"] == evidence["missing"]


@pytest.mark.parametrize("action", ["gate.put", "token.issue", "webhook.put", "endpoint.put", "x"])
def test_most_changes_are_nobodys_business(action: str) -> None:
    """They stand in the audit log."""
    document = {"secret": "hush", "sha256": "f" * 64}
    assert told(entry_of(action, "tokens/t", document=document)) == []


def test_events_are_cloud_events() -> None:
    """The official library reads them."""
    events = [
        *events_of(entry_of("access.denied"), SOURCE, {}),
        alert_event(SOURCE, "host:8080", "data_loss", 1.5, "The store went back."),
        ping_event(SOURCE, "ops", "ana", 1.5, "abc"),
    ]
    for event in events:
        read = from_json(encode_event(event))
        assert read["id"] == event.id
        assert read["specversion"] == "1.0"
        assert read["datacontenttype"] == "application/json"
        assert "." not in event.id


def test_times_are_of_the_standard() -> None:
    """RFC 3339 in UTC, to the millisecond."""
    (event,) = events_of(entry_of("access.denied"), SOURCE, {})
    assert event.time == "2023-11-14T22:13:20.250Z"


def test_what_people_wrote_cannot_move_a_cursor() -> None:
    """Control signs and marks of direction are escaped, and long words are cut."""
    assert shown("a\nb\x1b[2J\u202e\ud800", 99) == "a\\u000ab\\u001b[2J\\u202e\\ud800"
    assert shown("x" * 9, 5) == "xxxx…"
    (event,) = events_of(entry_of("access.denied", reason="r" * 9_999), SOURCE, {})
    assert len(event.data["reason"]) == 500


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["versions", "aliases", "checks", "override", "missing", "failed", "retired"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
ACTIONS = [
    "model.register",
    "model.refuse",
    "model.approve",
    "model.inspect",
    "wish.put",
    "model.retire",
]


@settings(max_examples=60)
@given(
    st.sampled_from([*ACTIONS, "model.promote", "experiment.step", "access.denied", "apply"]),
    st.sampled_from(["models/m", "reviews/m/1", "wishes/m/a", "experiments/x", ""]),
    JSON,
    JSON,
)
def test_whatever_an_entry_holds_it_can_be_told(
    action: str, target: str, document: Any, evidence: Any
) -> None:
    """Ids are distinct, and each event is JSON."""
    entry = entry_of(action, target, document=document, evidence=evidence)
    events = events_of(entry, SOURCE, {})
    assert len({event.id for event in events}) == len(events)
    for event in events:
        assert msgspec.json.decode(encode_event(event))["type"] == event.type.value
