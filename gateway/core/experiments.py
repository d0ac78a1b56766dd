"""Experiments: a Split under study, as a document that people write and a record that it becomes.

The document is fixed once the experiment has started: what is measured, with which margins and
which risks, is registered before the first unit is seen. What moves (state, phases, intervals) is
in the record, in the Snapshot, and every move is a commit.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from gateway.core.assignment import Interval, SplitState
from gateway.core.compare import Tolerance
from gateway.core.endpoints import DEFAULT_UNIT_HEADER, Target, UnitKey
from gateway.core.models import CHAMPION
from gateway.core.targeting import Condition

Kind: TypeAlias = Literal["binary", "count", "mean", "ratio", "quantile"]
Score: TypeAlias = Literal["value", "log_loss", "correct", "squared_error", "absolute_error"]
Event: TypeAlias = Literal["error", "timeout", "invalid_output", "slow"]


class Metric(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How outcomes become one number for each unit.

    `outcome` names what clients report; `score` says what is made of it: the value itself, or how
    far the prediction's declared output `scalar` was from it. A unit contributes once: the
    predictions of its first `window_s` seconds count, and their outcomes until `maturity_s` after
    that. `margin` is what may be lost without harm, in the metric's own units, at least 0.
    """

    name: str
    outcome: str
    role: Literal["goal", "guardrail", "watch"] = "goal"
    kind: Kind = "mean"
    direction: Literal["increase", "decrease"] = "increase"
    margin: float = 0.0
    score: Score = "value"
    scalar: str | None = None
    """One of the endpoint's `token_scalars`."""
    combine: Literal["mean", "sum", "last", "max"] = "mean"
    """How several outcomes of one unit become its value."""
    window_s: float = 86_400.0
    maturity_s: float = 0.0
    silence: Literal["missing", "default"] = "missing"
    """What a unit is whose outcome never came: left out (and counted), or `default`."""
    default: float = 0.0
    denominator: str | None = None
    """Of a ratio: the outcome that is divided by."""
    covariate: str | None = None
    """One of the endpoint's `token_scalars`, to take variance off (CUPED); it must not depend on
    the variant."""
    quantile: float = 0.5
    planned_units: int = 5_000
    """Units of all variants after which the interval is tightest."""


class Guard(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A guardrail on what the gateway sees itself: the share of units with at least one event.

    Harm is a rate above `tolerance` times the control's; safe is one certified below `allowed`
    times the control's, or below `negligible` in absolute terms.
    """

    name: str
    event: Event
    over_ms: float | None = None
    """Of `slow`: the target that an answer must not exceed."""
    tolerance: float = 1.0
    allowed: float = 1.25
    negligible: float = 0.01
    alpha: float | None = None
    """Risk of a false rollback by this guardrail alone; an equal part of the experiment's if not
    set."""


class ExperimentVariant(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One branch: its name and the version it runs. An alias is resolved when it starts."""

    name: str
    version: int | None = None
    alias: str | None = None

    @property
    def target(self) -> Target:
        """What this variant serves."""
        return Target(version=self.version, alias=self.alias)


class Fixed(Struct, frozen=True, forbid_unknown_fields=True, tag="fixed", tag_field="kind"):
    """Weights that stay: A/B/n. `exposure` and weights are out of 10,000."""

    weights: dict[str, int]
    exposure: int = 10_000


class Ramp(Struct, frozen=True, forbid_unknown_fields=True, tag="ramp", tag_field="kind"):
    """A canary that grows in steps. Two variants only.

    `steps` are shares of all units that get the candidate, out of 10,000, growing. With an `equal`
    control as many units are its control and nobody who is enrolled ever moves; with `remaining`
    all others are, and units move to the candidate as it grows.
    """

    steps: tuple[int, ...]
    control: Literal["equal", "remaining"] = "equal"
    dwell_s: float = 60.0
    min_units: int = 100
    """Units of the candidate, since the start, before any step."""
    min_events: int = 0
    risk_budget: float | None = None
    """Units with an event beyond those that the control would have had, that may be lost to a step
    in the worst case: sizes the next step, and lets it be taken before guardrails are certified."""


class Bandit(Struct, frozen=True, forbid_unknown_fields=True, tag="bandit", tag_field="kind"):
    """Thompson sampling on the first goal: weights follow the chance of being best.

    `floor` is the least weight of a variant and `exposure` the enrolled share, out of 10,000.
    Weights stay for `every_s` at first, and 2 per cent longer each time.
    """

    floor: int = 500
    exposure: int = 10_000
    every_s: float = 900.0
    min_units: int = 100
    """Matured units of each variant before weights move for the first time."""


Strategy: TypeAlias = Fixed | Ramp | Bandit


class ShadowStage(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Before any unit gets a candidate, copies of requests do. `share` is out of 10,000."""

    share: int = 10_000
    min_compared: int = 200
    max_disagreed: float = 0.05
    """Rate of answers beyond `tolerance`, and of failures, that is allowed."""
    dwell_s: float = 10.0
    tolerance: Tolerance = Tolerance()


class Segment(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What units are told apart by in reports; values that are not listed are `other`."""

    header: str | None = None
    parameter: str | None = None
    values: tuple[str, ...] = ()


class Experiment(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The document behind one experiment on one endpoint.

    Its rule stands behind the endpoint's own rules and before its default. The first variant is the
    control. Requests that do not name a `unit` are not enrolled; without `unit` every request is a
    unit of its own.
    """

    schema: int
    endpoint: str
    variants: tuple[ExperimentVariant, ...]
    strategy: Strategy
    metrics: tuple[Metric, ...] = ()
    guards: tuple[Guard, ...] = ()
    unit: UnitKey | None = UnitKey(header=DEFAULT_UNIT_HEADER)
    when: tuple[Condition, ...] = ()
    shadow: ShadowStage | None = None
    segment: Segment | None = None
    on_error: Literal["error", "fallback"] = "error"
    """Whether the default answers for a variant that could not; the unit is counted as intended,
    with the error."""
    layer: str | None = None
    """Experiments of one layer exclude each other, on whatever endpoints they run."""
    layer_share: int = 10_000
    """Of the layer's units, out of 10,000, how many are set aside for this experiment."""
    alpha: float = 0.05
    """Risk of a false rollback, shared by the guardrails, and of a false `better` or `worse`."""
    beta: float = 0.05
    """Risk of a false promotion by each guardrail and goal."""
    srm_alpha: float = 0.001
    alias: str = CHAMPION
    promote: Literal["auto", "approval", "never"] = "auto"
    deadline_s: float | None = None
    """Of the phase in which everything else is done: after it, `on_deadline`."""
    on_deadline: Literal["hold", "rollback", "ship"] = "hold"
    hold_out: int = 0
    """After promotion, units out of 10,000 that stay with the control for `hold_out_s`, so that
    late outcomes can still roll it back."""
    hold_out_s: float = 0.0
    max_contaminated: float = 0.01
    """Share of units seen under two variants beyond which nothing is concluded."""

    @property
    def control(self) -> str:
        """The name of the first variant."""
        return self.variants[0].name


class State(StrEnum):
    """Where an experiment stands."""

    DRAFT = "draft"
    SHADOW = "shadow"
    RUNNING = "running"
    HELD = "held"
    """Traffic stays as it is and no step is taken; `reason` says why. Harm still rolls back."""
    PAUSED = "paused"
    """The same, because someone asked."""
    HOLDING_OUT = "holding_out"
    """Promoted, with a reverse hold-out."""
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    STOPPED = "stopped"


ENROLLING: Final = frozenset({State.RUNNING, State.HELD, State.PAUSED, State.HOLDING_OUT})
"""States in which units are assigned."""
LIVE: Final = ENROLLING | {State.SHADOW}
"""States that the steward looks at."""
TERMINAL: Final = frozenset({State.PROMOTED, State.ROLLED_BACK, State.STOPPED})


class HoldReason(StrEnum):
    """Why nothing is concluded."""

    INCONCLUSIVE = "inconclusive"
    SRM = "srm"
    NO_DATA = "no_data"
    CONTAMINATION = "contamination"
    APPROVAL = "approval"
    MISSING_OUTCOMES = "missing_outcomes"
    CONTROL_MOVED = "control_moved"
    """Someone else moved the alias that a promotion would move."""
    GATE = "gate"
    """The winner is found; a gate of its model does not let it through yet."""


class Phase(Struct, frozen=True, forbid_unknown_fields=True):
    """A span with constant weights. `number` is unique: the revision of the commit that began it.

    `weights` are out of 10,000 of the enrolled, `exposure` the enrolled share; `at` is UTC seconds.
    """

    number: int
    at: float
    exposure: int
    weights: dict[str, int]

    def propensity(self, variant: str) -> float:
        """The share of the enrolled units that gets a variant."""
        return self.weights.get(variant, 0) / 10_000


class ExperimentRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """An experiment as the Snapshot keeps it.

    `id` names its keys in the store. `versions` and `scalars` are what the document's aliases and
    the endpoint's token scalars were when it started. `since` is when it entered its state.
    """

    document: Experiment
    id: str
    split: SplitState
    state: State = State.DRAFT
    reason: str = ""
    since: float = 0.0
    step: int = 0
    exposure: int = 0
    phases: tuple[Phase, ...] = ()
    versions: dict[str, int] = {}
    scalars: tuple[str, ...] = ()
    slots: tuple[Interval, ...] = ()
    """Which part of its layer it holds."""
    verdicts: dict[str, str] = {}
    """`metric/variant` to the last verdict."""
    approved: bool = False
    started_by: str = ""
    """Who started it, and so asks for what it comes to; empty before, and where it is not known."""

    @property
    def phase(self) -> Phase | None:
        """The one that runs, or ran last."""
        return self.phases[-1] if self.phases else None

    @property
    def started_at(self) -> float:
        """UTC seconds of the first phase; 0 before."""
        return self.phases[0].at if self.phases else 0.0


class Layer(Struct, frozen=True, forbid_unknown_fields=True):
    """Where experiments that exclude each other share out the units; it has a salt of its own."""

    salt: str


class HoldOut(Struct, frozen=True, forbid_unknown_fields=True):
    """Units that no experiment enrols, on any endpoint; `share` is out of 10,000."""

    salt: str
    share: int


class Study(Struct, frozen=True, eq=False):
    """What is noted of the units of one phase, wherever they are seen. Compared by identity.

    `variants` gives each variant its index in the document. `is_counted` says that its units need
    no state of their own, because each is one request; who of them was silent is known by number.
    """

    experiment: str
    phase: int
    variants: Mapping[str, int]
    guards: tuple[Guard, ...]
    is_counted: bool


def names_of(experiment: Experiment) -> Iterator[str]:
    """The names of all its guards and metrics, in the order of the document."""
    yield from (guard.name for guard in experiment.guards)
    yield from (metric.name for metric in experiment.metrics)


def study_of(name: str, document: Experiment, phase: Phase) -> Study:
    """What is noted of the units of a phase."""
    return Study(
        experiment=name,
        phase=phase.number,
        variants={variant.name: index for index, variant in enumerate(document.variants)},
        guards=document.guards,
        is_counted=document.unit is None,
    )
