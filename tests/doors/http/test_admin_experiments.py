"""Operations on experiments, layers, the hold-out and the ledger."""

import json
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from gateway.control.experiments import Judgement
from gateway.core.ledger import SCHEMA, Basis, basis_document
from gateway.core.reporting import point_of
from gateway.core.snapshot import document_digest
from tests.control.test_whatif import unit
from tests.doors.http.admin_world import MODEL, READER, World
from tests.rollouts import HERE, document_of, evidence_of, judge_by_units

PATH = "/admin/v1/experiments/exp"
DOCUMENT: dict[str, Any] = {
    **msgspec.json.decode(msgspec.json.encode(document_of())),
    "endpoint": MODEL,
}


async def drafted(**changes: Any) -> World:
    """A world with one draft."""
    world = await World().seed()
    answer = await world.ask("PUT", PATH, {**DOCUMENT, **changes})
    assert answer.status_code == 200, answer.text
    return world


async def started(**changes: Any) -> World:
    """A world with one experiment that runs."""
    world = await drafted(**changes)
    answer = await world.ask("POST", f"{PATH}/start", {"reason": "go"})
    assert answer.status_code == 200, answer.text
    return world


async def judged(world: World, units: int) -> None:
    """Let the steward take the step that follows from so many units of each variant."""
    snapshot = world.registry.snapshot
    record = snapshot.experiments["exp"]
    evidence, now = evidence_of(record, units), world.clock()
    world.evidence[record.id] = evidence
    decision = judge_by_units(record, evidence, now)
    basis = Basis(SCHEMA, record, evidence, now, 1, decision, HERE)
    etag, document = document_digest(record), basis_document(basis)
    await world.experiments.step(Judgement("exp", etag, decision, now, 1, document))


async def test_a_draft_is_put_listed_and_shown() -> None:
    """What was put comes back, with its ETag."""
    world = await drafted()
    listed = (await world.ask("GET", "/admin/v1/experiments", token=READER)).json()
    assert [(row["name"], row["strategy"], row["state"]) for row in listed["experiments"]] == [
        ("exp", "ramp", "draft")
    ]
    shown = await world.ask("GET", PATH, token=READER)
    assert shown.json()["record"]["document"] == DOCUMENT
    assert shown.headers["etag"] == f'"{listed["experiments"][0]["etag"]}"'


async def test_a_preview_changes_nothing_and_says_what_would_be() -> None:
    """Versions, exposure and weights, or why it would be refused."""
    world = await World().seed()
    preview = (await world.ask("PUT", f"{PATH}?dry_run", DOCUMENT)).json()
    assert preview["versions"] == {"control": 1, "candidate": 2}
    assert (preview["exposure"], preview["refusal"]) == (1_000, None)
    layered = {**DOCUMENT, "layer": "page"}
    refused = (await world.ask("PUT", f"{PATH}?dry_run", layered)).json()
    assert "there is no layer 'page'" in refused["refusal"]
    assert world.registry.snapshot.experiments == {}


async def test_a_draft_moves_only_for_who_knows_its_etag() -> None:
    """As with endpoints: a stale ETag is a conflict that tells the one which stands."""
    world = await drafted()
    etag = (await world.ask("GET", PATH)).headers["etag"]
    changed = await world.ask("PUT", PATH, {**DOCUMENT, "alpha": 0.01}, headers={"if-match": etag})
    assert changed.status_code == 200
    late = await world.ask("PUT", PATH, DOCUMENT, headers={"if-match": etag})
    assert late.status_code == 409
    assert late.headers["etag"] == changed.headers["etag"]
    start = await world.ask("POST", f"{PATH}/start", {}, headers={"if-match": etag})
    assert start.status_code == 409


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        pytest.param({"alpha": 2.0}, "alpha", id="risk"),
        pytest.param({"endpoint": "nowhere"}, "nowhere", id="endpoint"),
        pytest.param({"surprise": 1}, "surprise", id="unknown field"),
        pytest.param({"strategy": {"kind": "ramp", "steps": [5, 4]}}, "steps must grow", id="ramp"),
    ],
)
async def test_a_wrong_document_is_refused(changes: dict[str, Any], told: str) -> None:
    """With a sentence that says where."""
    world = await World().seed()
    answer = await world.ask("PUT", PATH, {**DOCUMENT, **changes})
    assert answer.status_code == 400
    assert told in answer.json()["error"]


async def test_a_started_experiment_keeps_its_document() -> None:
    """A changed margin is another experiment."""
    world = await started()
    answer = await world.ask("PUT", PATH, {**DOCUMENT, "beta": 0.2})
    assert answer.status_code == 409
    assert "Start a new one" in answer.json()["error"]


async def test_it_is_paused_resumed_and_stopped() -> None:
    """Each with a reason that the audit log keeps."""
    world = await started()
    for verb, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopped")):
        answer = await world.ask("POST", f"{PATH}/{verb}", {"reason": f"to {verb}"})
        assert answer.status_code == 200
        assert (await world.ask("GET", PATH)).json()["record"]["state"] == state
    again = await world.ask("POST", f"{PATH}/stop", {})
    assert again.status_code == 409
    entries = (await world.ask("GET", "/admin/v1/audit")).json()["entries"]
    told = [(row["entry"]["action"], row["entry"]["actor"]) for row in entries[-3:]]
    assert told == [(f"experiment.{verb}", "wim") for verb in ("pause", "resume", "stop")]
    assert entries[-1]["entry"]["reason"] == "to stop"


async def test_approval_and_rollback_are_asked_for_too() -> None:
    """Approval is remembered; a rollback by a person ends it."""
    world = await started(promote="approval")
    assert (await world.ask("POST", f"{PATH}/approve")).status_code == 200
    assert (await world.ask("GET", PATH)).json()["record"]["approved"]
    assert (await world.ask("POST", f"{PATH}/rollback", {})).status_code == 200
    assert (await world.ask("GET", PATH)).json()["record"]["state"] == "rolled_back"


async def test_a_successor_is_started_in_place_of_another() -> None:
    """One commit stops one and starts the other."""
    world = await started()
    other = "/admin/v1/experiments/exp2"
    await world.ask("PUT", other, DOCUMENT)
    refused = await world.ask("POST", f"{other}/start", {})
    assert refused.status_code == 400
    begun = await world.ask("POST", f"{other}/start", {"supersedes": "exp"})
    assert begun.status_code == 200
    assert (await world.ask("GET", PATH)).json()["record"]["reason"] == "superseded by 'exp2'"


async def test_a_report_reads_the_evidence() -> None:
    """Readings, counts, phases and what the note of a stale control says."""
    world = await started()
    record = world.registry.snapshot.experiments["exp"]
    world.evidence[record.id] = evidence_of(record, 100)
    report = (await world.ask("GET", f"{PATH}/report", token=READER)).json()
    assert report["state"] == "running"
    assert report["readings"][0]["verdict"] == "equivalent"
    assert report["readings"][0]["left"] == 1_200
    assert [row["assigned"] for row in report["variants"]] == [100, 100]
    assert report["variants"][1]["metrics"]["loss"]["waiting"] == 50
    assert [phase["readings"][0]["name"] for phase in report["phases"]] == ["loss"]
    assert report["results"] == {"duplicate": 1_500, "late": 2}
    assert report["age_s"] == world.clock() - 90.0
    assert "seconds old" in report["remarks"][0]


async def test_a_report_needs_the_store_and_the_document_does_not() -> None:
    """While the store is away, what control knows can still be read."""
    world = await started()
    world.memory.away = True
    assert (await world.ask("GET", f"{PATH}/report")).status_code == 503
    assert (await world.ask("GET", PATH)).status_code == 200
    assert (await world.ask("POST", f"{PATH}/stop", {})).status_code == 503


async def test_a_champion_that_somebody_moved_is_remarked_on() -> None:
    """Their promotion stands; the experiment says what that means for it."""
    world = await started()
    moved = await world.ask("POST", f"/admin/v1/models/{MODEL}/promote", {"version": 3})
    assert moved.status_code == 200
    shown = (await world.ask("GET", PATH)).json()
    assert "someone moved it" in shown["remarks"][0]
    assert shown["record"]["versions"] == {"control": 1, "candidate": 2}


async def test_history_holds_the_points_that_were_kept() -> None:
    """Those of another version are passed over."""
    world = await started()
    record = world.registry.snapshot.experiments["exp"]
    evidence = evidence_of(record, 60)
    point = point_of(record, evidence, judge_by_units(record, evidence, 5.0), 5.0)
    world.points = [b"{}", msgspec.json.encode(point)]
    history = (await world.ask("GET", f"{PATH}/history?limit=5")).json()
    assert [one["units"] for one in history["points"]] == [{"control": 60, "candidate": 60}]
    assert (await world.ask("GET", "/admin/v1/experiments/none/history")).status_code == 404


async def test_a_layer_is_shared_and_says_by_whom() -> None:
    """Its salt is drawn, kept, and its own document."""
    world = await World().seed()
    layer = "/admin/v1/layers/page"
    assert (await world.ask("PUT", layer, {})).json()["changed"]
    assert not (await world.ask("PUT", layer, {})).json()["changed"]
    await world.ask("PUT", PATH, {**DOCUMENT, "layer": "page", "layer_share": 4_000})
    await world.ask("POST", f"{PATH}/start", {})
    shown = (await world.ask("GET", layer, token=READER)).json()
    assert shown["experiments"] == {"exp": 4_000}
    assert shown["free"] == 6_000
    assert (await world.ask("GET", "/admin/v1/layers")).json()["layers"][0]["name"] == "page"
    assert (await world.ask("DELETE", layer)).status_code == 409
    await world.ask("POST", f"{PATH}/stop", {})
    assert (await world.ask("DELETE", layer)).status_code == 200
    assert (await world.ask("GET", layer)).status_code == 404


async def test_the_hold_out_keeps_its_salt() -> None:
    """Another share leaves those who stay where they are."""
    world = await World().seed()
    path = "/admin/v1/holdout"
    assert (await world.ask("GET", path)).json()["document"] is None
    await world.ask("PUT", path, {"share": 100})
    first = (await world.ask("GET", path)).json()["document"]
    await world.ask("PUT", path, {"share": 200})
    second = (await world.ask("GET", path)).json()["document"]
    assert (first["share"], second["share"]) == (100, 200)
    assert first["salt"] == second["salt"]
    assert (await world.ask("DELETE", path)).status_code == 200
    assert (await world.ask("DELETE", path)).status_code == 404
    assert (await world.ask("PUT", path, {"share": 9_999})).status_code == 400


async def test_the_ledger_holds_decisions_only() -> None:
    """With all that they were made from; what people did is in the audit log."""
    world = await started()
    await judged(world, 50)
    await judged(world, 500)
    ledger = (await world.ask("GET", "/admin/v1/ledger", token=READER)).json()
    assert [row["entry"]["action"] for row in ledger["entries"]] == ["experiment.step"] * 2
    assert ledger["entries"][1]["entry"]["evidence"]["made_on"]["cpu"] == "one"
    assert ledger["head"] == ledger["entries"][1]["hash"]
    first = (await world.ask("GET", "/admin/v1/ledger?limit=1&experiment=exp")).json()
    assert len(first["entries"]) == 1
    rest = await world.ask("GET", f"/admin/v1/ledger?after={first['next']}")
    assert len(rest.json()["entries"]) == 1
    none = await world.ask("GET", "/admin/v1/ledger?experiment=other")
    assert none.json()["entries"] == []


async def test_what_runs_is_not_deleted() -> None:
    """A draft is, and so is what has ended."""
    world = await started()
    assert (await world.ask("DELETE", PATH)).status_code == 409
    await world.ask("POST", f"{PATH}/stop", {})
    assert (await world.ask("DELETE", PATH)).status_code == 200
    assert (await world.ask("GET", PATH)).status_code == 404


async def test_the_report_is_a_page_too() -> None:
    """A browser may show it: HTML that may load nothing."""
    world = await started()
    await judged(world, 150)
    answer = await world.ask("GET", f"{PATH}/report.html", token=READER)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<h1>exp" in answer.text


async def test_another_policy_is_judged_by_the_units_of_an_experiment() -> None:
    """The answer names estimates, support and warnings."""
    world = await started()
    record = world.registry.snapshot.experiments["exp"]
    world.units = {
        bytes((number, *[0] * 15)): unit(record.phases[0].number, number % 2, number)
        for number in range(40)
    }
    policy = {"weights": {"control": 0.2, "candidate": 0.8}}
    query = {"metric": "loss", "policy": json.dumps(policy)}
    told = await world.ask("GET", f"{PATH}/whatif?{urlencode(query)}", token=READER)
    assert told.status_code == 200, told.text
    assert [one["name"] for one in told.json()["values"]] == [
        "ips", "snips", "direct", "doubly_robust",
    ]  # fmt: skip
    assert told.json()["units"] == 40


@pytest.mark.parametrize(
    ("query", "status", "told"),
    [
        ({"metric": "loss", "policy": "{"}, 400, "The policy cannot be read"),
        ({"metric": "loss", "policy": '{"weights": {"x": 1}}'}, 400, "names variant 'x'"),
        ({"metric": "gain", "policy": '{"weights": {}}'}, 404, "has no metric 'gain'"),
        ({"policy": '{"weights": {}}'}, 400, "metric"),
    ],
)
async def test_what_is_no_question_is_refused(
    query: dict[str, str], status: int, told: str
) -> None:
    """With a sentence that says what is wrong."""
    world = await started()
    record = world.registry.snapshot.experiments["exp"]
    world.units = {bytes(16): unit(record.phases[0].number, 0, 1)}
    answer = await world.ask("GET", f"{PATH}/whatif?{urlencode(query)}", token=READER)
    assert answer.status_code == status
    assert told in answer.json()["error"]
