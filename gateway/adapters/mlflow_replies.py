"""What MLflow's REST API answers, as far as it is read here; every field may be missing."""

from typing import Any

import msgspec
from msgspec import Struct

from gateway.core.following import FollowedData, FollowedModel, FollowedRun, FollowedVersion
from gateway.core.models import MAX_VERSION

READY = "READY"
CONTEXT = "mlflow.data.context"
PLACES = ("uri", "url", "path", "table_name")
"""Where the source of a data set says what it is; which one depends on its kind."""


class Pair(Struct, frozen=True):
    """A tag or a parameter."""

    key: str = ""
    value: str = ""


class Alias(Struct, frozen=True):
    """An alias and the version that it names."""

    alias: str = ""
    version: str = ""


class Model(Struct, frozen=True):
    """A registered model."""

    name: str = ""
    creation_timestamp: int = 0
    aliases: list[Alias] = []

    def followed(self) -> FollowedModel:
        """As the port tells it; what is no number is no version."""
        aliases = {one.alias: _number(one.version) for one in self.aliases}
        return FollowedModel(self.name, self.creation_timestamp, aliases)


class Models(Struct, frozen=True):
    """A page of registered models."""

    registered_models: list[Model] = []
    next_page_token: str = ""


class Version(Struct, frozen=True):
    """A registered version."""

    name: str = ""
    version: str = ""
    creation_timestamp: int = 0
    status: str = ""
    source: str = ""
    run_id: str = ""
    description: str = ""
    tags: list[Pair] = []

    def followed(self) -> FollowedVersion:
        """As the port tells it."""
        return FollowedVersion(
            model=self.name,
            number=_number(self.version),
            ready=self.status == READY,
            created_ms=self.creation_timestamp,
            source=self.source,
            run_id=self.run_id,
            description=self.description,
            tags=_table(self.tags),
        )


class Versions(Struct, frozen=True):
    """A page of versions."""

    model_versions: list[Version] = []
    next_page_token: str = ""


class File(Struct, frozen=True):
    """A file or folder of an artifact store; sizes are numbers or, of some stores, texts."""

    path: str = ""
    is_dir: bool = False
    size: int | str = msgspec.field(default=0, name="file_size")

    @property
    def file_size(self) -> int:
        """In bytes; 0 where it is not said."""
        return int(self.size) if str(self.size).isascii() and str(self.size).isdigit() else 0


class Files(Struct, frozen=True):
    """What a folder holds."""

    files: list[File] = []
    next_page_token: str = ""


class Metric(Struct, frozen=True):
    """The last value of a metric; what is not finite is a text."""

    key: str = ""
    value: float | str = 0.0


class DataSet(Struct, frozen=True):
    """A data set; its source is a JSON document in a text."""

    name: str = ""
    digest: str = ""
    source: str = ""


class DataInput(Struct, frozen=True):
    """That a run read a data set."""

    dataset: DataSet = DataSet()
    tags: list[Pair] = []

    def followed(self) -> FollowedData:
        """As the port tells it."""
        context = _table(self.tags).get(CONTEXT, "")
        return FollowedData(
            self.dataset.name, self.dataset.digest, _location(self.dataset.source), context
        )


class RunInfo(Struct, frozen=True):
    """What a run is."""

    run_id: str = ""
    run_name: str = ""
    user_id: str = ""
    artifact_uri: str = ""


class RunData(Struct, frozen=True):
    """What a run logged."""

    metrics: list[Metric] = []
    params: list[Pair] = []
    tags: list[Pair] = []


class RunInputs(Struct, frozen=True):
    """What a run read."""

    dataset_inputs: list[DataInput] = []


class Run(Struct, frozen=True):
    """A run."""

    info: RunInfo = RunInfo()
    data: RunData = RunData()
    inputs: RunInputs = RunInputs()

    def followed(self) -> FollowedRun:
        """As the port tells it."""
        tags = _table(self.data.tags)
        return FollowedRun(
            run_id=self.info.run_id,
            name=self.info.run_name,
            user=self.info.user_id or tags.get("mlflow.user", ""),
            commit=tags.get("mlflow.source.git.commit", ""),
            script=tags.get("mlflow.source.name", ""),
            artifacts=self.info.artifact_uri,
            parameters=_table(self.data.params),
            metrics={metric.key: metric.value for metric in self.data.metrics},
            tags=tags,
            data=tuple(one.followed() for one in self.inputs.dataset_inputs),
        )


class RunAnswer(Struct, frozen=True):
    """The answer to a question for a run."""

    run: Run = Run()


def _table(pairs: list[Pair]) -> dict[str, str]:
    return {pair.key: pair.value for pair in pairs}


def _number(text: str) -> int:
    """A version's number; 0, which no version has, for what is none here."""
    proper = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_VERSION))
    return int(text) if proper else 0


def _location(source: str) -> str:
    """The place that the source of a data set tells, empty if it tells none that is known."""
    try:
        told: Any = msgspec.json.decode(source)
    except msgspec.DecodeError:
        return ""
    places = [told[name] for name in PLACES if name in told] if isinstance(told, dict) else []
    return next((place for place in places if isinstance(place, str)), "")
