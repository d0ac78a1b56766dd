"""The part of the admin API's table that is about experiments."""

from collections.abc import Awaitable, Callable
from typing import Final

from gateway.control.experiments import ExperimentPreview
from gateway.core.experiments import Experiment
from gateway.core.principals import Action
from gateway.core.reporting import Report
from gateway.core.subjects import About
from gateway.core.whatif import WhatIf
from gateway.doors.http import admin_experiments as experiments
from gateway.doors.http.admin_calls import Call, Operation, Query
from gateway.doors.http.admin_documents import Changed
from gateway.doors.http.admin_experiment_documents import (
    Because,
    Begin,
    ExperimentDocument,
    ExperimentList,
    History,
    HoldOutDocument,
    LayerDocument,
    LayerList,
    LedgerPage,
    PutHoldOut,
    PutLayer,
)
from gateway.doors.http.messages import Response

ROOT: Final = "/admin/v1"
EXPERIMENT: Final = f"{ROOT}/experiments/{{name}}"
LAYER: Final = f"{ROOT}/layers/{{name}}"
HOLD_OUT: Final = f"{ROOT}/holdout"
REASON: Final = Query("reason", "why, for the audit log")


def _action(verb: str, summary: str, handle: Callable[[Call], Awaitable[Response]]) -> Operation:
    return Operation(
        method="POST",
        path=f"{EXPERIMENT}/{verb}",
        action=Action.EXPERIMENT,
        name=f"{verb}Experiment",
        summary=summary,
        handle=handle,
        body=Because,
        answer=Changed,
    )


def _superseded(body: Begin) -> tuple[About, str] | None:
    """What a start stops, which may be about another model."""
    return None if body.supersedes is None else (About.EXPERIMENT, body.supersedes)


EXPERIMENT_OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="GET",
        path=f"{ROOT}/experiments",
        action=Action.READ,
        name="listExperiments",
        summary="Every experiment, drafts and those that have ended among them.",
        handle=experiments.list_experiments,
        answer=ExperimentList,
    ),
    Operation(
        method="GET",
        path=EXPERIMENT,
        action=Action.READ,
        name="getExperiment",
        summary="An experiment's document, its state, phases and verdicts.",
        handle=experiments.show_experiment,
        answer=ExperimentDocument,
    ),
    Operation(
        method="PUT",
        path=EXPERIMENT,
        action=Action.EXPERIMENT,
        name="putExperiment",
        summary="Write or replace a draft, or say what starting it would do.",
        handle=experiments.put_experiment,
        query=(
            Query("dry_run", "change nothing, answer a preview", kind="flag"),
            Query("allow_signature_change", "let variants differ in their tensors", kind="flag"),
            REASON,
        ),
        body=Experiment,
        answer=Changed,
        preview=ExperimentPreview,
    ),
    Operation(
        method="DELETE",
        path=EXPERIMENT,
        action=Action.EXPERIMENT,
        name="deleteExperiment",
        summary="Drop a draft or an experiment that has ended.",
        handle=experiments.delete_experiment,
        query=(REASON,),
        answer=Changed,
    ),
    Operation(
        method="POST",
        path=f"{EXPERIMENT}/start",
        action=Action.EXPERIMENT,
        name="startExperiment",
        summary="Start a draft: what it measures is registered from now on.",
        handle=experiments.start,
        also=_superseded,
        body=Begin,
        answer=Changed,
    ),
    _action("pause", "Leave traffic as it is and take no step.", experiments.pause),
    _action("resume", "Take steps again.", experiments.resume),
    _action("approve", "Let it promote once its evidence says so.", experiments.approve),
    _action("stop", "End it without a verdict.", experiments.stop),
    _action("rollback", "End it as harmful; a promotion is taken back.", experiments.roll_back),
    Operation(
        method="GET",
        path=f"{EXPERIMENT}/report",
        action=Action.READ,
        name="getReport",
        summary="What the evidence says now: readings, funnel, phases and segments.",
        handle=experiments.show_report,
        answer=Report,
    ),
    Operation(
        method="GET",
        path=f"{EXPERIMENT}/report.html",
        action=Action.READ,
        name="getReportPage",
        summary="The report as a page for people, with its history drawn.",
        handle=experiments.show_report_page,
    ),
    Operation(
        method="GET",
        path=f"{EXPERIMENT}/whatif",
        action=Action.READ,
        name="askWhatIf",
        summary="What another policy would have earned, from units with known propensities.",
        handle=experiments.answer_whatif,
        query=(
            Query("metric", "by which it is judged", required=True),
            Query("policy", "a policy document in JSON", required=True),
        ),
        answer=WhatIf,
    ),
    Operation(
        method="GET",
        path=f"{EXPERIMENT}/history",
        action=Action.READ,
        name="getHistory",
        summary="How the numbers moved since the start.",
        handle=experiments.show_history,
        query=(Query("limit", "points at most, 1 to 10000, the newest", kind="integer"),),
        answer=History,
    ),
    Operation(
        method="GET",
        path=f"{ROOT}/layers",
        action=Action.READ,
        name="listLayers",
        summary="Every layer, and the experiments that share it.",
        handle=experiments.list_layers,
        answer=LayerList,
    ),
    Operation(
        method="GET",
        path=LAYER,
        action=Action.READ,
        name="getLayer",
        summary="A layer, and the experiments that share it.",
        handle=experiments.show_layer,
        answer=LayerDocument,
    ),
    Operation(
        method="PUT",
        path=LAYER,
        action=Action.EXPERIMENT,
        name="putLayer",
        summary="Add a layer, in which experiments exclude each other.",
        handle=experiments.put_layer,
        query=(REASON,),
        body=PutLayer,
        answer=Changed,
    ),
    Operation(
        method="DELETE",
        path=LAYER,
        action=Action.EXPERIMENT,
        name="deleteLayer",
        summary="Drop a layer that no experiment needs.",
        handle=experiments.delete_layer,
        query=(REASON,),
        answer=Changed,
    ),
    Operation(
        method="GET",
        path=HOLD_OUT,
        action=Action.READ,
        name="getHoldOut",
        summary="The share of units that no experiment enrols.",
        handle=experiments.show_hold_out,
        answer=HoldOutDocument,
    ),
    Operation(
        method="PUT",
        path=HOLD_OUT,
        action=Action.EXPERIMENT,
        name="putHoldOut",
        summary="Keep a share of units away from every experiment.",
        handle=experiments.put_hold_out,
        query=(REASON,),
        body=PutHoldOut,
        answer=Changed,
    ),
    Operation(
        method="DELETE",
        path=HOLD_OUT,
        action=Action.EXPERIMENT,
        name="deleteHoldOut",
        summary="Keep nobody away.",
        handle=experiments.delete_hold_out,
        query=(REASON,),
        answer=Changed,
    ),
    Operation(
        method="GET",
        path=f"{ROOT}/ledger",
        action=Action.READ,
        name="ledger",
        summary="Decisions of the steward, each with all that it was made from.",
        handle=experiments.read_ledger,
        query=(
            Query("after", "the revision after which to begin", kind="integer"),
            Query("limit", "entries on a page, 1 to 500", kind="integer"),
            Query("experiment", "of this experiment only"),
        ),
        answer=LedgerPage,
    ),
)
