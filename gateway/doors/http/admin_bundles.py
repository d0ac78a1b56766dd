"""Operations on bundles: apply one, export what stands, and the schemas for editors."""

from collections.abc import Iterable

import msgspec

from gateway.control.bundles import BundleOptions, Permit
from gateway.core.access import forbidden_model, require, standing
from gateway.core.applying import Right
from gateway.core.errors import NotFound, Unauthenticated, excerpt
from gateway.core.principals import Action
from gateway.core.snapshot import Snapshot
from gateway.doors.http.admin_bundle_documents import Apply, BundleApplied
from gateway.doors.http.admin_calls import Call, answer
from gateway.doors.http.messages import Response
from gateway.doors.schemas import KINDS, schema_of


async def apply_bundle(call: Call) -> Response:
    """Make all that a bundle says stand, or say what that would do."""
    asked: Apply = call.document
    bundles, prune = call.parts.bundles, call.flag("prune")
    if call.flag("dry_run"):
        plan = await bundles.plan(asked.bundle, permit_of(call), prune=prune, actor=call.actor)
        return answer(plan, revision=plan.revision)
    options = BundleOptions(
        prune=prune,
        expected=asked.expected,
        allow_signature_change=call.flag("allow_signature_change"),
    )
    request = call.asked(asked.reason)
    done = await bundles.apply(asked.bundle, options, permit_of(call), request)
    revision, changed = done.change.revision, done.change.entry is not None
    return answer(BundleApplied(revision, changed, done.changes), revision=revision)


async def export_bundle(call: Call) -> Response:
    """What stands, as a bundle that changes nothing when it is applied.

    Principals are left out for who may not see them.
    """
    snapshot = call.parts.registry.snapshot
    bundle = call.parts.bundles.export(principals=_holds(call, (Action.ACCESS, None)))
    return answer(bundle, revision=snapshot.revision)


async def show_schema(call: Call) -> Response:
    """The JSON Schema of a kind of document."""
    kind = call.path["kind"]
    if kind not in KINDS:
        message = f"There is no schema of '{excerpt(kind)}'; there are: {', '.join(KINDS)}."
        raise NotFound(message)
    return answer(msgspec.Raw(msgspec.json.encode(schema_of(kind))))


def permit_of(call: Call) -> Permit:
    """Refuses, with Forbidden, what the caller may not do."""

    def permit(base: Snapshot, rights: Iterable[Right]) -> None:
        if call.principal is None:
            message = "Send a bearer token in the Authorization header."
            raise Unauthenticated(message)
        principal = standing(call.principal, base)
        for action, model in rights:
            require(principal, action, None if model is None else {model}, call.parts.denied)

    return permit


def _holds(call: Call, right: Right) -> bool:
    """Whether the caller has a right, without a refusal that anybody would hear of."""
    action, model = right
    models = None if model is None else {model}
    return call.principal is not None and not forbidden_model(call.principal, action, models)
