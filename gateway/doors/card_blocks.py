"""What a model card says, block by block, whatever it is written in afterwards."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from gateway.core.cards import Card, Trial
from gateway.core.inspections import Inspection
from gateway.core.readings import Reading
from gateway.core.tensors import TensorSpec
from gateway.doors.charts import bars_chart, forest, number_text
from gateway.doors.page_parts import moment

MAX_DEPTH: Final = 6
MAX_FACTS: Final = 200
"""Fields of a lineage that a card tells."""
TOP_OPERATORS: Final = 12
DIGITS: Final = 12
"""Of a digest, where it is told for people."""


class Cell(Struct, frozen=True):
    """A word with a meaning that colour may help to see, such as `passed`."""

    text: str
    kind: str


class Facts(Struct, frozen=True):
    """Names with what they are."""

    pairs: tuple[tuple[str, str], ...]


class Table(Struct, frozen=True):
    """Rows under columns; the first `words` columns hold words, the others numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    words: int


class Picture(Struct, frozen=True):
    """A chart as SVG; `rows` say the same in words and numbers, where nothing can be drawn."""

    svg: str
    caption: str
    rows: tuple[tuple[str, str], ...]


class Note(Struct, frozen=True):
    """A sentence."""

    text: str


Block = Facts | Table | Picture | Note


class Section(Struct, frozen=True):
    """Blocks under a heading."""

    title: str
    blocks: tuple[Block, ...]


def title_of(card: Card) -> str:
    """What the card is of."""
    return f"{card.model}, version {card.number}"


def sections_of(card: Card) -> tuple[Section, ...]:
    """The whole card, but for its title."""
    made = (
        ("At a glance", _glance(card)),
        ("Tensors", _tensors(card)),
        ("Lineage", _lineage(card.manifest.lineage)),
        ("Checks", _checks(card)),
        ("Runs", () if card.inspection is None else tuple(_runs(card.inspection))),
        ("Inside", () if card.inspection is None else tuple(_inside(card.inspection))),
        ("Approvals", _approvals(card)),
        ("Experiments", tuple(block for trial in card.trials for block in _trial(trial))),
        ("Decisions", _history(card)),
    )
    return tuple(Section(title, blocks) for title, blocks in made if blocks)


def _glance(card: Card) -> tuple[Block, ...]:
    manifest, review = card.manifest, card.review
    pairs = [
        ("stands as", "; ".join(card.standing)),
        ("digest", manifest.digest),
        ("files", ", ".join(f"{file.path} ({file.size:,} bytes)" for file in manifest.files)),
        ("first seen", moment(manifest.created_at)),
    ]
    if review is not None:
        pairs.append(("registered", f"{moment(review.registered_at)} by {review.registered_by}"))
    if card.labels:
        pairs.append(("labels", ", ".join(card.labels)))
    pairs.append(("this card", f"{moment(card.made_at)}, revision {card.revision}"))
    about = manifest.lineage.get("description")
    said: tuple[Block, ...] = (Note(about),) if isinstance(about, str) and about else ()
    return (*said, Facts(tuple(pairs)))


def _tensors(card: Card) -> tuple[Block, ...]:
    signature = card.manifest.signature
    rows = [("input", *_spec(spec)) for spec in signature.inputs]
    rows += [("output", *_spec(spec)) for spec in signature.outputs]
    return (Table(("", "name", "datatype", "shape"), tuple(rows), words=4),) if rows else ()


def _spec(spec: TensorSpec) -> tuple[str, str, str]:
    names = spec.symbols or (None,) * len(spec.shape)
    extents = [
        name or ("any" if extent < 0 else str(extent))
        for extent, name in zip(spec.shape, names, strict=True)
    ]
    return spec.name, spec.datatype, " × ".join(extents) or "scalar"


def _lineage(lineage: Mapping[str, Any]) -> tuple[Block, ...]:
    pairs = [pair for pair in _flat("", lineage, 0) if pair[0] != "description"]
    told = Facts(tuple(pairs[:MAX_FACTS]))
    if not pairs:
        return (Note("Nothing was said of where it comes from."),)
    more = len(pairs) - MAX_FACTS
    return (told, Note(f"{more} more fields are in its manifest.")) if more > 0 else (told,)


def _flat(name: str, value: Any, depth: int) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    if isinstance(value, Mapping) and depth < MAX_DEPTH:
        for key in value:
            yield from _flat(f"{name}.{key}" if name else str(key), value[key], depth + 1)
    elif isinstance(value, list):
        yield name, ", ".join(str(one) for one in value)
    else:
        yield name, str(value)


def _checks(card: Card) -> tuple[Block, ...]:
    inspection, review = card.inspection, card.review
    checks = inspection.checks if inspection is not None else review.checks if review else {}
    if not checks:
        return (Note("It was never inspected."),)
    rows = tuple(
        (
            check.value,
            Cell(result.outcome.value, result.outcome.value),
            result.summary,
            number_text(result.measure) if result.measure is not None else "",
        )
        for check, result in checks.items()
    )
    table = Table(("check", "outcome", "what was found", "measure"), rows, words=3)
    if inspection is None:
        return (table,)
    tools = ", ".join(f"{name} {version}" for name, version in sorted(inspection.tools.items()))
    return (table, Note(f"Inspected {moment(inspection.at)} with {tools}."))


def _runs(inspection: Inspection) -> Iterator[Block]:
    costs = inspection.costs
    if costs:
        rows = tuple(
            (str(cost.rows), number_text(cost.p50_ms), number_text(cost.p99_ms), str(cost.runs))
            for cost in costs
        )
        yield Table(("rows", "median ms", "99th percentile ms", "runs"), rows, words=0)
        bars = [
            (
                "1 row" if cost.rows == 1 else f"{cost.rows} rows",
                cost.p50_ms / cost.rows,
                f"{number_text(cost.p50_ms / cost.rows)}",
            )
            for cost in costs
            if cost.rows > 0
        ]
        caption = "milliseconds for each row, by rows in a run"
        yield Picture(
            bars_chart(bars, caption), caption, tuple((name, text) for name, _, text in bars)
        )
    if inspection.peak_mb:
        yield Note(
            f"Memory at the peak: {number_text(inspection.peak_mb)} MiB beyond a bare process."
        )


def _inside(inspection: Inspection) -> Iterator[Block]:
    opsets = ", ".join(f"{name} {number}" for name, number in sorted(inspection.opsets.items()))
    yield Facts(
        (
            ("parameters", f"{inspection.parameters:,}"),
            ("bytes", f"{inspection.size:,}"),
            ("ONNX IR", str(inspection.ir_version or "unknown")),
            ("operator sets", opsets or "unknown"),
            ("made by", inspection.producer or "unknown"),
        )
    )
    top = sorted(inspection.operators.items(), key=lambda pair: (-pair[1], pair[0]))[:TOP_OPERATORS]
    if top:
        bars = [(name.removeprefix("ai.onnx."), float(count), f"{count:,}") for name, count in top]
        more = len(inspection.operators) - len(top)
        caption = "operators" + (f", and {more} kinds more" if more > 0 else "")
        yield Picture(
            bars_chart(bars, caption), caption, tuple((name, text) for name, _, text in bars)
        )


def _approvals(card: Card) -> tuple[Block, ...]:
    approvals = () if card.review is None else card.review.approvals
    rows = tuple(
        (one.principal, ", ".join(one.roles), moment(one.at), one.reason) for one in approvals
    )
    return (Table(("who", "as", "when", "why"), rows, words=4),) if rows else ()


def _trial(trial: Trial) -> Iterator[Block]:
    why = f" ({trial.reason})" if trial.reason else ""
    part = "the control" if trial.is_control else "a candidate"
    yield Note(
        f"{trial.experiment}: {trial.state.replace('_', ' ')}{why}; began "
        f"{moment(trial.started_at)}. This version was '{trial.variant}', {part}, "
        f"and {trial.units:,} units were assigned to it."
    )
    if not trial.readings:
        return
    rows = tuple(
        (
            reading.name,
            reading.role,
            Cell(reading.verdict.value, reading.verdict.value),
            number_text(reading.control),
            number_text(reading.treatment),
            _difference(reading),
        )
        for reading in trial.readings
    )
    columns = ("metric", "role", "verdict", "control", "this version", "difference")
    yield Table(columns, rows, words=3)
    for reading in trial.readings:
        svg = _interval(reading)
        if svg:
            caption = f"{reading.name}: this version minus control"
            yield Picture(svg, caption, ((reading.name, _difference(reading)),))


def _difference(reading: Reading) -> str:
    if reading.estimate is None:
        return "–"
    if reading.interval is None:
        return number_text(reading.estimate)
    lower, upper = reading.interval
    return f"{number_text(reading.estimate)} [{number_text(lower)}, {number_text(upper)}]"


def _interval(reading: Reading) -> str:
    if reading.estimate is None or reading.interval is None or None in reading.interval:
        return ""
    lower, upper = reading.interval[0] or 0.0, reading.interval[1] or 0.0
    return forest(reading.estimate, lower, upper, 1.1 * max(abs(lower), abs(upper)), 0.0)


def _history(card: Card) -> tuple[Block, ...]:
    rows = tuple(
        (
            moment(one.at),
            str(one.revision),
            one.actor,
            Cell(f"{one.action}, by force", "forced") if one.forced else one.action,
            one.reason,
        )
        for one in reversed(card.history)
    )
    table = (Table(("when", "revision", "who", "what", "why"), rows, words=5),) if rows else ()
    if card.history_since is None:
        return table
    since = moment(card.history_since)
    return (*table, Note(f"What was decided before {since} is in archives of the audit log."))
