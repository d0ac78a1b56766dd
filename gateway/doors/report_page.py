"""The report of an experiment as one HTML page that needs nothing else: no script, no network.

It shows what the admin API says in JSON; nothing is computed here but places on a chart.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from gateway.core.experiments import Experiment
from gateway.core.readings import Reading, Stage
from gateway.core.reporting import Point, Report
from gateway.doors.charts import (
    Line,
    Sample,
    band_chart,
    forest,
    number_text,
    span_text,
    steps_chart,
)
from gateway.doors.page_parts import figure, moment, page, paragraph, section, table

SCALE: Final = 10_000


def report_page(report: Report, document: Experiment, points: Sequence[Point]) -> str:
    """A whole page.

    Args:
        report: what is known now.
        document: the experiment, for its margins.
        points: its history, oldest first; without any there are no charts over time.
    """
    margins = {metric.name: metric.margin for metric in document.metrics}
    sections = (
        _head(report),
        _verdicts(report, margins),
        _funnel(report),
        _over_time(report, margins, points),
        _variants(report),
        _phases(report),
        _segments(report),
        _NOTES,
    )
    return page(f"{report.name}: experiment report", sections)


def _head(report: Report) -> str:
    why = f" ({escape(report.reason)})" if report.reason else ""
    facts = {
        "endpoint": report.endpoint,
        "strategy": report.strategy,
        "started": moment(report.started_at),
        f"{report.state.value.replace('_', ' ')} since": moment(report.since),
        "enrolled": f"{report.exposure / SCALE:.1%} of units",
        "revision": str(report.revision),
    }
    told = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(text)}</dd></div>" for key, text in facts.items()
    )
    remarks = "".join(f'<p class="remark">{escape(remark)}</p>' for remark in report.remarks)
    detail = f"<p>{escape(report.detail)}</p>" if report.detail else ""
    return (
        f'<h1>{escape(report.name)} <span class="badge {report.state.value}">'
        f"{report.state.value.replace('_', ' ')}{why}</span></h1>{detail}{remarks}<dl>{told}</dl>"
    )


def _verdicts(report: Report, margins: dict[str, float]) -> str:
    rows = [
        (
            f"{escape(reading.name)} <small>{escape(reading.role)}</small>",
            escape(reading.variant),
            f'<span class="badge {reading.verdict.value}">{reading.verdict.value}</span>',
            number_text(reading.control),
            number_text(reading.treatment),
            _difference(reading),
            _interval_picture(reading, margins.get(reading.name, 0.0)),
            _evidence(reading.harm.e, reading.harm.threshold),
            _evidence(*_safety(reading)),
            f"{reading.units[0]} / {reading.units[1]}",
            "–" if reading.left is None else f"{reading.left:,}",
        )
        for reading in report.readings
    ]
    columns = (
        "metric", "variant", "verdict", "control", "variant's", "difference", "", "harm e",
        "safe e", "units", "units left",
    )  # fmt: skip
    return section("What may be said", table(columns, rows, words=3)) if rows else ""


def _difference(reading: Reading) -> str:
    if reading.estimate is None:
        return "–"
    text = number_text(reading.estimate)
    if reading.interval is None:
        return text
    lower, upper = reading.interval
    return f"{text} <small>[{number_text(lower)}, {number_text(upper)}]</small>"


def _interval_picture(reading: Reading, margin: float) -> str:
    if reading.estimate is None or reading.interval is None or None in reading.interval:
        return ""
    lower, upper = reading.interval[0] or 0.0, reading.interval[1] or 0.0
    reach = 1.1 * max(abs(lower), abs(upper), margin)
    return forest(reading.estimate, lower, upper, reach, margin)


def _safety(reading: Reading) -> tuple[float, float]:
    """Of two ways to be certified, the one that is nearer."""
    other = reading.negligible
    if other is not None and other.e / other.threshold > reading.safe.e / reading.safe.threshold:
        return other.e, other.threshold
    return reading.safe.e, reading.safe.threshold


def _evidence(e: float, threshold: float) -> str:
    reached = ' class="reached"' if e >= threshold else ""
    return f"<span{reached}>{number_text(e)}</span> <small>of {number_text(threshold)}</small>"


def _funnel(report: Report) -> str:
    if report.funnel is None:
        return ""
    stages = (report.funnel.assigned, report.funnel.served, report.funnel.received)
    rows = [
        (
            stage.name,
            f"{stage.units:,}",
            _shares(stage),
            _evidence(stage.test.e, stage.test.threshold),
            '<span class="badge invalid">off</span>' if stage.is_off else "as expected",
        )
        for stage in stages
    ]
    columns = ("stage", "units", "share seen (expected)", "mismatch e", "")
    share = f"{report.funnel.contaminated:.2%} of a variant's units, at most, saw another one."
    return section("Sample ratio, stage by stage", table(columns, rows, words=1) + paragraph(share))


def _shares(stage: Stage) -> str:
    return "<br>".join(
        f"{escape(name)} {share:.2%} ({stage.expected.get(name, 0.0):.2%})"
        for name, share in stage.seen.items()
    )


def _over_time(report: Report, margins: dict[str, float], points: Sequence[Point]) -> str:
    if not points:
        return ""
    start = points[0].at
    figures = []
    for reading in report.readings:
        chart = band_chart(
            [
                Sample(point.at - start, told.estimate, *(told.interval or (None, None)))
                for point in points
                for told in point.readings
                if (told.name, told.variant) == (reading.name, reading.variant)
            ],
            _levels(margins.get(reading.name, 0.0)),
        )
        if chart:
            caption = f"{reading.name}: {reading.variant} minus control"
            figures.append(figure(chart, caption))
    names = [variant.name for variant in report.variants]
    for name in names:
        chart = steps_chart(
            [
                Sample(
                    point.at - start, point.exposure * point.weights.get(name, 0) / SCALE / SCALE
                )
                for point in points
            ]
        )
        figures.append(figure(chart, f"share of all units that get {name}"))
    span = span_text(points[-1].at - start)
    return section(f"Over time, {span}", "".join(figures))


def _levels(margin: float) -> list[Line]:
    levels = [Line(0.0, "")]
    if margin > 0:
        levels += [Line(margin, "± margin"), Line(-margin, "")]
    return levels


def _variants(report: Report) -> str:
    rows = [
        (
            escape(variant.name),
            "–" if variant.version is None else str(variant.version),
            f"{variant.share:.2%}",
            f"{variant.assigned:,}",
            f"{variant.served:,}",
            f"{variant.received:,}",
            f"{variant.contaminated:,}",
            _counted(variant.events.items()),
            _counted(
                (name, f"{count.units:,} counted, {count.waiting:,} wait, {count.missing:,} silent")
                for name, count in variant.metrics.items()
            ),
        )
        for variant in report.variants
    ]
    columns = (
        "variant", "version", "share now", "assigned", "served", "with outcome", "contaminated",
        "units with event", "outcomes",
    )  # fmt: skip
    return section("Units", table(columns, rows, words=1))


def _counted(pairs: Iterable[tuple[str, object]]) -> str:
    return "<br>".join(f"{escape(name)}: {escape(str(count))}" for name, count in pairs) or "–"


def _phases(report: Report) -> str:
    rows = [
        (
            str(phase.number),
            moment(phase.at),
            f"{phase.exposure / SCALE:.1%}",
            _counted((name, f"{weight / SCALE:.1%}") for name, weight in phase.weights.items()),
            _told(phase.readings),
        )
        for phase in report.phases
    ]
    columns = ("phase", "began", "enrolled", "weights", "difference in it alone")
    return section("Phases", table(columns, rows, words=2)) if rows else ""


def _segments(report: Report) -> str:
    rows = [(escape(part.segment), _told(part.readings)) for part in report.segments]
    body = table(("segment", "difference in it alone"), rows, words=1)
    return section("Segments", body + paragraph(_SEGMENT_NOTE)) if rows else ""


def _told(readings: Iterable[Reading]) -> str:
    told = [
        f"{escape(reading.name)}, {escape(reading.variant)}: {_difference(reading)}"
        for reading in readings
        if reading.estimate is not None
    ]
    return "<br>".join(told) or "–"


_SEGMENT_NOTE: Final = (
    "Segments are for looking at: with many of them, some will look good or bad by chance."
)
_NOTES: Final = (
    "<footer><p>Intervals and e-values hold at every look, however often one looks. Evidence counts"
    " when e reaches the number behind it. <em>Units left</em> is a forecast, should what is seen"
    " go on. Early intervals may be cut off in the charts.</p></footer>"
)
