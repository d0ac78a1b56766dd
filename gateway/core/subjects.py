"""Subjects: which models an operation is about, so that a grant for some allows just these."""

from enum import StrEnum

from gateway.core.endpoints import Endpoint
from gateway.core.errors import NotFound
from gateway.core.experiments import Experiment
from gateway.core.snapshot import Snapshot, endpoint_record


class About(StrEnum):
    """What the name in a path names."""

    MODEL = "model"
    ENDPOINT = "endpoint"
    EXPERIMENT = "experiment"
    NOTHING = "nothing"
    """No model in particular."""


def models_about(snapshot: Snapshot, about: About, name: str) -> frozenset[str] | None:
    """The models that something is about: one, none where nothing has that name, None for no model.

    An experiment that outlived its endpoint is about none in particular.

    Args:
        snapshot: the one it stands in.
        about: what is named.
        name: of it.
    """
    if about is About.NOTHING:
        return None
    if about is About.MODEL:
        return frozenset({name})
    if about is About.EXPERIMENT:
        record = snapshot.experiments.get(name)
        if record is None:
            return frozenset()
        # Where its endpoint has gone since it ended, nobody can tell whose it was.
        return models_in(snapshot, record.document) or None
    try:
        return frozenset({endpoint_record(snapshot, name).document.model})
    except NotFound:
        return frozenset()


def models_uncovered(snapshot: Snapshot, endpoint: str) -> frozenset[str]:
    """The model that clients of an endpoint get once its document is gone."""
    return frozenset({endpoint} & snapshot.models.keys())


def models_in(snapshot: Snapshot, document: object) -> frozenset[str]:
    """The models that a document is about which somebody wants to write."""
    if isinstance(document, Endpoint):
        return frozenset({document.model})
    if isinstance(document, Experiment):
        return models_about(snapshot, About.ENDPOINT, document.endpoint) or frozenset()
    return frozenset()
