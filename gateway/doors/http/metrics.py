"""Metrics as text, for Prometheus to scrape.

Source: Prometheus text exposition format 0.0.4; OpenTelemetry specification, "Prometheus and
OpenMetrics Compatibility", for the names.
"""

from collections.abc import Iterator
from itertools import accumulate
from math import inf, isnan
from typing import Final

from gateway.telemetry import Attributes, Instrument, Series

PROMETHEUS: Final = b"text/plain; version=0.0.4; charset=utf-8"
"""Media type of the page."""
_SUFFIXES: Final = {"s": "_seconds", "By": "_bytes"}
_TYPES: Final = {
    "counter": "counter",
    "updown": "gauge",
    "gauge": "gauge",
    "histogram": "histogram",
}


def render(series: list[Series], resource: Attributes = ()) -> bytes:
    """Write all series, instrument by instrument in alphabetical order.

    Args:
        series: what `Cells.collect` or `merge` returned.
        resource: who this is, written as `target_info` if there is any.
    """
    families: dict[str, list[Series]] = {}
    for one in series:
        families.setdefault(metric_name(one.instrument), []).append(one)
    lines: list[str] = []
    if resource:
        lines += _head("target_info", "gauge", "Who this is.")
        lines.append(f"target_info{_labels(resource)} 1")
    for name, family in sorted(families.items()):
        instrument = family[0].instrument
        lines += _head(name, _TYPES[instrument.kind], instrument.description)
        for one in family:
            lines += _samples(name, one)
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def metric_name(instrument: Instrument) -> str:
    """The name under which Prometheus knows an instrument."""
    name = _identifier(instrument.name)
    suffix = _SUFFIXES.get(instrument.unit, "")
    if not name.endswith(suffix):
        name += suffix
    return f"{name}_total" if instrument.kind == "counter" else name


def _head(name: str, kind: str, description: str) -> tuple[str, str]:
    escaped = description.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {escaped}", f"# TYPE {name} {kind}"


def _samples(name: str, series: Series) -> Iterator[str]:
    if series.instrument.kind != "histogram":
        yield f"{name}{_labels(series.attributes)} {_number(series.value)}"
        return
    running = list(accumulate(series.counts))
    for bound, count in zip((*series.instrument.bounds, inf), running, strict=True):
        yield f"{name}_bucket{_labels((*series.attributes, ('le', _number(bound))))} {count}"
    labels = _labels(series.attributes)
    yield f"{name}_sum{labels} {_number(series.total)}"
    yield f"{name}_count{labels} {running[-1]}"


def _labels(attributes: Attributes) -> str:
    if not attributes:
        return ""
    return "{" + ",".join(f'{_identifier(key)}="{_text(v)}"' for key, v in attributes) + "}"


def _text(value: str | int | bool) -> str:  # noqa: FBT001 - a value of either type, not a switch
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _identifier(name: str) -> str:
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)
    return f"_{cleaned}" if cleaned[:1].isdigit() else cleaned


def _number(value: float) -> str:
    if isnan(value):
        return "NaN"
    if value in (inf, -inf):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(value)
