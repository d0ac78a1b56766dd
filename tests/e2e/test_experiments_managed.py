"""Experiments in people's hands: what they may change, when, and what is refused."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.gateways import Gateway, eventually
from tests.e2e.loads import BODY
from tests.e2e.trials import (
    Callers,
    begin,
    document,
    reaches,
    record,
    steps_of,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

EVEN = {"kind": "fixed", "weights": {"control": 5_000, "candidate": 5_000}}
DELAY = {"name": "delay", "outcome": "arrival", "margin": 1.0}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that all these share; each has an endpoint of its own."""
    made = Gateway(tmp_path_factory.mktemp("managed")).start()
    yield made
    made.close()


def even(gateway: Gateway, endpoint: str, **fields: Any) -> dict[str, Any]:
    """An A/B test on an endpoint of its own, which moves an alias of its own."""
    gateway.told("PUT", f"/admin/v1/endpoints/{endpoint}", {"schema": 1, "model": "flight-delay"})
    return document(**{"endpoint": endpoint, "alias": endpoint, "strategy": EVEN, **fields})


def act(gateway: Gateway, name: str, verb: str, **headers: str) -> httpx.Response:
    """Ask for something to be done with an experiment."""
    path = f"/admin/v1/experiments/{name}/{verb}"
    return gateway.ask("POST", path, {"reason": "as asked"}, **headers)


def etag(gateway: Gateway, name: str) -> str:
    """Of an experiment as it stands."""
    return str(gateway.ask("GET", f"/admin/v1/experiments/{name}").headers["etag"])


def act_as_read(gateway: Gateway, name: str, verb: str) -> str:
    """Do it on what was just read; again if the steward noted something in between."""

    def tried() -> str | None:
        read = etag(gateway, name)
        answer = act(gateway, name, verb, **{"If-Match": read})
        assert answer.status_code in {200, 409}, answer.text
        return read if answer.status_code == 200 else None

    read = eventually(tried)
    assert read is not None
    return read


def variants(gateway: Gateway, endpoint: str, units: int = 200) -> dict[str, str]:
    """What each of so many units gets on an endpoint."""
    path = f"/v2/models/{endpoint}/infer"
    with httpx.Client(base_url=gateway.url, timeout=30) as client:
        answers = {
            f"u{number}": client.post(path, content=BODY, headers={"X-Unit-Id": f"u{number}"})
            for number in range(units)
        }
    assert {answer.status_code for answer in answers.values()} == {200}
    return {unit: answer.headers["x-variant"] for unit, answer in answers.items()}


def test_every_move_is_held_to_the_etag_that_it_names(gateway: Gateway) -> None:
    """Pause, resume and stop with If-Match; one that read an older state is refused with 409."""
    begin(gateway, "moved", even(gateway, "moved", promote="never"))
    before = act_as_read(gateway, "moved", "pause")
    paused = etag(gateway, "moved")
    late = [act(gateway, "moved", verb, **{"If-Match": before}) for verb in ("resume", "stop")]
    assert paused != before
    assert [answer.status_code for answer in late] == [409, 409]
    assert record(gateway, "moved")["state"] == "paused"

    gateway.settle()
    assert set(variants(gateway, "moved", 40).values()) == {"control", "candidate"}
    act_as_read(gateway, "moved", "resume")
    reaches(gateway, "moved", "running")
    assert act(gateway, "moved", "stop").status_code == 200
    again = act(gateway, "moved", "pause")
    assert again.status_code == 409
    assert "it cannot be paused now" in again.json()["error"]
    gateway.settle()
    assert set(variants(gateway, "moved", 20).values()) == {"default"}
    asked = [entry for entry in gateway.audit() if entry["target"] == "experiments/moved"]
    verbs = [one["action"].rpartition(".")[2] for one in asked if one["actor"] != "steward"]
    assert verbs == ["put", "start", "pause", "resume", "stop"]
    assert {one["reason"] for one in asked if one["action"] == "experiment.stop"} == {"as asked"}


def test_a_pause_takes_no_step_and_a_resume_takes_it(gateway: Gateway) -> None:
    """Evidence that suffices moves nothing while it is paused."""
    begin(gateway, "still", even(gateway, "still"))
    assert act(gateway, "still", "pause").status_code == 200
    path = "/v2/models/still/infer"
    with Callers(gateway, path=path, metric=None, units=200) as load:
        eventually(lambda: len(load.diary.told) == 200)

    def certified() -> bool:
        shown = gateway.told("GET", "/admin/v1/experiments/still/report")["readings"]
        return bool(shown) and all(one.get("verdict") == "equivalent" for one in shown)

    assert eventually(certified)
    assert record(gateway, "still")["state"] == "paused"
    assert act(gateway, "still", "resume").status_code == 200
    assert reaches(gateway, "still", "promoted")["reason"] == "certified"


def test_what_is_measured_is_registered_at_the_start(gateway: Gateway) -> None:
    """A draft may be rewritten; a started one keeps its metrics, and another takes its place."""
    first = even(gateway, "fixed", metrics=[DELAY], promote="never")
    path = "/admin/v1/experiments/fixed"
    gateway.told("PUT", path, {**first, "metrics": []})
    begin(gateway, "fixed", first)

    changed = {**first, "metrics": [{**DELAY, "margin": 2.0}]}
    refused = gateway.ask("PUT", path, changed)
    assert refused.status_code == 409
    assert "registered before the first unit is seen" in refused.json()["error"]
    assert gateway.ask("PUT", path, first).status_code == 200

    gateway.told("PUT", "/admin/v1/experiments/fixed-2", changed)
    begun = gateway.told("POST", "/admin/v1/experiments/fixed-2/start", {"supersedes": "fixed"})
    assert begun
    assert record(gateway, "fixed")["state"] == "stopped"
    assert record(gateway, "fixed-2")["state"] == "running"


def test_approval_is_asked_for_and_then_it_is_promoted(gateway: Gateway) -> None:
    """Certified it waits; approved, with the ETag that was read, it is promoted once."""
    begin(gateway, "asked", even(gateway, "asked", promote="approval"))
    path = "/v2/models/asked/infer"
    with Callers(gateway, path=path, metric=None) as load:
        held = reaches(gateway, "asked", "held")
        assert held["reason"] == "approval"
        assert act(gateway, "asked", "approve", **{"If-Match": '"0"'}).status_code == 409
        act_as_read(gateway, "asked", "approve")
        reaches(gateway, "asked", "promoted")
        load.go_on(5)
    aliases = gateway.told("GET", "/admin/v1/models/flight-delay")["aliases"]
    assert aliases["asked"] == 2
    states = [one["document"]["state"] for one in steps_of(gateway, "asked")]
    assert states.count("promoted") == 1


def test_two_on_one_endpoint_need_a_layer_that_shares_out_the_units(gateway: Gateway) -> None:
    """Without one the second is refused; in one, no unit is in both, and a third finds no room."""
    one = even(gateway, "shared", promote="never")
    begin(gateway, "alone", one)
    gateway.told("PUT", "/admin/v1/experiments/beside", one)
    refused = gateway.ask("POST", "/admin/v1/experiments/beside/start", {})
    assert refused.status_code in {400, 409}
    assert "layer" in refused.json()["error"]
    assert act(gateway, "alone", "stop").status_code == 200

    gateway.told("PUT", "/admin/v1/layers/page", {})
    half = {**one, "layer": "page", "layer_share": 5_000}
    for name in ("first", "second"):
        named = [{"name": f"{name}-{v}", "version": v} for v in (1, 2)]
        weights = {variant["name"]: 5_000 for variant in named}
        strategy = {"kind": "fixed", "weights": weights}
        begin(gateway, name, {**half, "variants": named, "strategy": strategy})
    counted = Counter(found.partition("-")[0] for found in variants(gateway, "shared").values())
    assert set(counted) == {"first", "second"}
    assert min(counted.values()) > 60
    gateway.told("PUT", "/admin/v1/experiments/third", half)
    full = gateway.ask("POST", "/admin/v1/experiments/third/start", {})
    assert full.status_code == 409
    assert "of which 0 are free" in full.json()["error"]


def test_the_global_hold_out_is_kept_away_from_every_experiment(gateway: Gateway) -> None:
    """Who is held out gets the default; when it is lifted they are drawn like everybody."""
    begin(gateway, "all", even(gateway, "all", promote="never"))
    before = variants(gateway, "all")
    gateway.told("PUT", "/admin/v1/holdout", {"share": 3_000})
    gateway.settle()
    during = variants(gateway, "all")
    assert gateway.ask("DELETE", "/admin/v1/holdout").is_success
    gateway.settle()
    after = variants(gateway, "all")

    out = {unit for unit, variant in during.items() if variant == "default"}
    assert 25 <= len(out) <= 100
    assert "default" not in before.values()
    assert before == after
    assert {unit: during[unit] for unit in during if unit not in out} == {
        unit: before[unit] for unit in before if unit not in out
    }
