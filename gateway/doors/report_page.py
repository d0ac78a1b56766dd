"""The report of an experiment as one HTML page that needs nothing else: no script, no network.

It shows what the admin API says in JSON; nothing is computed here but places on a chart.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
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
    title = escape(report.name)
    body = "\n".join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}: experiment report</title><style>{_STYLE}</style></head>"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _head(report: Report) -> str:
    why = f" ({escape(report.reason)})" if report.reason else ""
    facts = {
        "endpoint": report.endpoint,
        "strategy": report.strategy,
        "started": _moment(report.started_at),
        f"{report.state.value.replace('_', ' ')} since": _moment(report.since),
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
    return _section("What may be said", _table(columns, rows, words=3)) if rows else ""


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
    return _section("Sample ratio, stage by stage", _table(columns, rows, words=1) + _text(share))


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
            figures.append(_figure(chart, caption))
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
        figures.append(_figure(chart, f"share of all units that get {name}"))
    span = span_text(points[-1].at - start)
    return _section(f"Over time, {span}", "".join(figures))


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
    return _section("Units", _table(columns, rows, words=1))


def _counted(pairs: Iterable[tuple[str, object]]) -> str:
    return "<br>".join(f"{escape(name)}: {escape(str(count))}" for name, count in pairs) or "–"


def _phases(report: Report) -> str:
    rows = [
        (
            str(phase.number),
            _moment(phase.at),
            f"{phase.exposure / SCALE:.1%}",
            _counted((name, f"{weight / SCALE:.1%}") for name, weight in phase.weights.items()),
            _told(phase.readings),
        )
        for phase in report.phases
    ]
    columns = ("phase", "began", "enrolled", "weights", "difference in it alone")
    return _section("Phases", _table(columns, rows, words=2)) if rows else ""


def _segments(report: Report) -> str:
    rows = [(escape(part.segment), _told(part.readings)) for part in report.segments]
    body = _table(("segment", "difference in it alone"), rows, words=1)
    return _section("Segments", body + _text(_SEGMENT_NOTE)) if rows else ""


def _told(readings: Iterable[Reading]) -> str:
    told = [
        f"{escape(reading.name)}, {escape(reading.variant)}: {_difference(reading)}"
        for reading in readings
        if reading.estimate is not None
    ]
    return "<br>".join(told) or "–"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> str:
    """A table; the first `words` columns hold words, the others numbers. Cells are HTML."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{'' if place < words else ' class=number'}>{cell}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _figure(chart: str, caption: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{chart}</figure>"


def _text(sentence: str) -> str:
    return f"<p>{escape(sentence)}</p>"


def _moment(at: float) -> str:
    if not at:
        return "not yet"
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


_SEGMENT_NOTE: Final = (
    "Segments are for looking at: with many of them, some will look good or bad by chance."
)
_NOTES: Final = (
    "<footer><p>Intervals and e-values hold at every look, however often one looks. Evidence counts"
    " when e reaches the number behind it. <em>Units left</em> is a forecast, should what is seen"
    " go on. Early intervals may be cut off in the charts.</p></footer>"
)
_STYLE: Final = """
:root{--ink:#1b1f24;--soft:#5c6670;--rule:#dfe3e8;--paper:#fff;--line:#1f5fbf;--band:#1f5fbf2e;
--good:#17743a;--bad:#b3261e;--odd:#8a5a00;--plain:#4a5561;--margin:#17743a1f}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#9aa5b1;--rule:#333b45;
--paper:#14181d;--line:#7fb0ff;--band:#7fb0ff33;--good:#6fd08c;--bad:#ff8a80;--odd:#f0bf5f;--plain:#aab4bf;
--margin:#6fd08c26}}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px 20px 48px}
h1{font-size:24px;margin:0 0 8px}h2{font-size:17px;margin:32px 0 8px}
small{color:var(--soft)}p{margin:6px 0}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(210px,1fr));gap:8px;margin:16px 0}
dt{color:var(--soft);font-size:13px}dd{margin:0}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}
th{color:var(--soft);font-weight:500;text-align:left;white-space:nowrap}
td,th{padding:6px 10px 6px 0;border-bottom:1px solid var(--rule);vertical-align:top}
.number{font-variant-numeric:tabular-nums;white-space:nowrap}
.badge{border:1px solid currentColor;border-radius:9px;padding:0 8px;font-size:13px;font-weight:500;
white-space:nowrap;color:var(--plain);vertical-align:middle}
.better,.equivalent,.promoted,.holding_out{color:var(--good)}
.worse,.rolled_back,.invalid{color:var(--bad)}.held,.paused{color:var(--odd)}
.running,.shadow{color:var(--line)}.reached{font-weight:700}
.remark{border-left:3px solid var(--odd);padding-left:10px}
figure{margin:12px 0}figcaption{color:var(--soft);font-size:13px}
svg{max-width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:11px}
.grid{stroke:var(--rule)}.zero{stroke:var(--soft);stroke-dasharray:4 3}
.line{fill:none;stroke:var(--line);stroke-width:2}.band{fill:var(--band)}.dot{fill:var(--line)}
.margin{fill:var(--margin)}
footer{margin-top:36px;color:var(--soft);font-size:13px}
"""
