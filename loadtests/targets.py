"""What a run must reach, and whether it did. Pure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

THREE: Final = ("logistic", "boosted", "perceptron")


@dataclass(frozen=True)
class Target:
    """One bound on every figure whose name matches one of the patterns; the worst one counts."""

    measure: str
    patterns: tuple[str, ...]
    sign: Literal["≥", "≤", "<"]
    bound: float
    unit: str = ""
    aim: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a figure is within the bound."""
        if self.sign == "≥":
            return value >= self.bound
        return value <= self.bound if self.sign == "≤" else value < self.bound

    def words(self) -> str:
        """The bound as a reader reads it."""
        aim = "" if self.aim is None else f", aim {self.aim:g}"
        return f"{self.sign} {self.bound:g}{self.unit}{aim}"


@dataclass(frozen=True)
class Verdict:
    """A target and the worst figure of a run; None where the run did not measure it."""

    target: Target
    figure: str | None
    value: float | None

    @property
    def passed(self) -> bool | None:
        """None where it was not measured."""
        return None if self.value is None else self.target.holds(self.value)


TARGETS: Final = (
    Target(
        "three small models, JSON, 32 connections: throughput over bare",
        tuple(f"peak/{model}/tiltyard/over_bare" for model in THREE),
        "≥",
        2.5,
        " ×",
        3.5,
    ),
    Target(
        "the same through the plain ASGI door",
        tuple(
            f"peak/{model}/{door}/over_bare"
            for model in THREE
            for door in ("tiltyard-asgi", "tiltyard-uvicorn")
        ),
        "≥",
        1.3,
        " ×",
    ),
    Target(
        "one connection: p50 over bare",
        tuple(f"single/{model}/tiltyard/p50_over_bare" for model in THREE),
        "≤",
        0.75,
        " ×",
    ),
    Target("image, binary: over bare binary", ("tensors/*/binary/over_bare",), "≥", 0.95, " ×"),
    Target("image: binary over JSON", ("tensors/*/binary_over_json",), "≥", 5, " ×"),
    Target("telemetry and split: CPU per request", ("telemetry/*/cpu_us",), "≤", 12, " µs"),
    Target("every Python peer: throughput over it", ("peers/*/times",), "≥", 6, " ×"),
    Target("every Python peer: p99 over its p99", ("peers/*/p99",), "<", 1, " ×"),
    Target(
        "open loop at 80 % of own peak: p99 over p50",
        ("rates/tiltyard/80/p99_over_p50",),
        "≤",
        5,
        " ×",
    ),
    Target("100 promotions at half load: made", ("swaps/done",), "≥", 100),
    Target("100 promotions at half load: failed answers", ("swaps/failed",), "≤", 0),
    Target("100 promotions at half load: wrong answers", ("swaps/wrong",), "≤", 0),
    Target("p99 during swaps over steady", ("swaps/p99_over_steady",), "≤", 1.3, " ×"),
    Target("resident memory grown by swaps", ("swaps/resident_mib",), "≤", 32, " MiB"),
    Target("shadow of all: primary p99 over without", ("shadows/*",), "≤", 1.1, " ×"),
    Target("offered 5 × peak: goodput over peak", ("overload/goodput_over_peak",), "≥", 0.9, " ×"),
    Target("offered 5 × peak: slowest health answer", ("overload/health_ms",), "≤", 50, " ms"),
    Target("idle: largest process, resident", ("idle/resident_mib",), "≤", 120, " MiB"),
    Target("idle: CPU of all processes", ("idle/cpu_percent",), "≤", 2, " %"),
)


def judge(figures: Mapping[str, float], targets: Iterable[Target] = TARGETS) -> list[Verdict]:
    """The worst matching figure for each target."""
    verdicts = []
    for target in targets:
        found = [
            (value, name)
            for name, value in figures.items()
            if any(fnmatchcase(name, pattern) for pattern in target.patterns)
            and not math.isnan(value)
        ]
        if not found:
            verdicts.append(Verdict(target, None, None))
            continue
        value, name = min(found) if target.sign == "≥" else max(found)
        verdicts.append(Verdict(target, name, value))
    return verdicts
