"""The HTML report of an experiment."""

from html.parser import HTMLParser
from typing import Any

from msgspec.structs import replace

from gateway.core.experiments import Experiment, ExperimentVariant, Fixed, Metric, State
from gateway.core.readings import Evidential, Funnel, Reading, Stage, Verdict
from gateway.core.reporting import (
    MetricCount,
    PhaseReport,
    Point,
    PointReading,
    Report,
    SegmentReport,
    VariantCount,
)
from gateway.doors.report_page import report_page

HOSTILE = '<script>alert("x")</script>&'
SHARES = {"control": 0.5, "candidate": 0.5}
DOCUMENT = Experiment(
    schema=1,
    endpoint="flight-delay",
    variants=(
        ExperimentVariant(name="control", version=1),
        ExperimentVariant(name="candidate", version=2),
    ),
    strategy=Fixed(weights={"control": 5_000, "candidate": 5_000}),
    metrics=(Metric(name="log_loss", outcome="late", direction="decrease", margin=0.03),),
)
READING = Reading(
    name="log_loss",
    variant="candidate",
    role="goal",
    verdict=Verdict.BETTER,
    harm=Evidential(0.04, 40.0),
    safe=Evidential(310.5, 20.0),
    control=0.5993,
    treatment=0.5331,
    estimate=-0.0662,
    interval=(-0.1269, -0.0055),
    units=(384, 399),
    left=None,
)
GUARD = Reading(name="errors", variant="candidate", role="guard", units=(384, 399), left=1_250)


def report(**changes: Any) -> Report:
    """An experiment in the middle of its life."""
    stage = Stage("assigned", 783, {"control": 0.4904, "candidate": 0.5096}, SHARES)
    whole = Report(
        name="boosted-trees",
        revision=17,
        etag="e",
        endpoint="flight-delay",
        strategy="ramp",
        state=State.RUNNING,
        reason="",
        detail="log_loss is better; errors need about 1,250 more units.",
        since=1_760_000_000.0,
        started_at=1_760_000_000.0,
        step=2,
        exposure=10_000,
        approved=False,
        age_s=0.4,
        remarks=(),
        variants=tuple(
            VariantCount(
                name, number, 0.5, 390, 390, 371, 0, {"errors": 0},
                {"log_loss": MetricCount(371, 12, 7, 1, 0)},
            )
            for number, name in enumerate(SHARES, 1)
        ),
        readings=(READING, GUARD),
        funnel=Funnel(stage, replace(stage, name="served"), replace(stage, name="received"), 0.001),
        shadows=(),
        phases=(PhaseReport(16, 1_760_000_000.0, 10_000, dict.fromkeys(SHARES, 5000), (READING,)),),
        segments=(SegmentReport("UA", (READING,)), SegmentReport("other", (GUARD,))),
        results={"accepted": 742, "duplicate": 3},
    )  # fmt: skip
    return replace(whole, **changes)


def history(count: int = 60) -> list[Point]:
    """Intervals that shrink over ten minutes."""
    return [
        Point(
            at=1_760_000_000.0 + 10 * index,
            state=State.RUNNING,
            reason="",
            exposure=1_000 if index < count / 2 else 10_000,
            weights=dict.fromkeys(SHARES, 5000),
            units=dict.fromkeys(SHARES, 13 * index),
            readings=(
                PointReading(
                    "log_loss", "candidate", "inconclusive", -0.07 - 0.3 / (index + 1),
                    (-0.07 - 4 / (index + 1), -0.07 + 4 / (index + 1)), 0.5, 2.0, (1, 1),
                ),
            ) if index else (),
        )
        for index in range(count)
    ]  # fmt: skip


class Reader(HTMLParser):
    """Remembers elements, checks that they close in order, and what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.fetched += [name for name, _ in attrs if name in {"src", "href"}]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.fetched += [name for name, _ in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    """The page as a browser would take it apart."""
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_page_needs_nothing_but_itself() -> None:
    """No script, no link, no picture from elsewhere; every element is closed."""
    reader = read(report_page(report(), DOCUMENT, history()))
    assert reader.fetched == []
    assert not {"script", "img", "link", "iframe"} & set(reader.seen)


def test_the_page_tells_verdicts_numbers_and_what_is_left() -> None:
    """What the JSON report says stands there in words."""
    text = read(report_page(report(), DOCUMENT, history())).text
    for told in ("better", "−0.0662", "[−0.1269, −0.0055]", "1,250", "49.04% (50.00%)", "UA"):
        assert told in text


def test_each_reading_and_share_is_drawn_over_time() -> None:
    """One chart for the metric with a history, one share for each variant, one interval."""
    page = report_page(report(), DOCUMENT, history())
    assert page.count("<figure>") == 3
    assert page.count('class="band"') == 1
    assert "margin" in page


def test_without_a_history_nothing_is_drawn_over_time() -> None:
    """A draft, or an experiment whose history is gone, still has a page."""
    page = report_page(
        report(readings=(), funnel=None, phases=(), segments=(), state=State.DRAFT, started_at=0.0),
        DOCUMENT,
        [],
    )
    assert "Over time" not in page
    assert "not yet" in read(page).text


def test_words_of_people_are_shown_as_words() -> None:
    """Names, remarks and details cannot become elements of the page."""
    hostile = report(
        name=HOSTILE,
        detail=HOSTILE,
        remarks=(HOSTILE,),
        reason=HOSTILE,
        readings=(replace(READING, name=HOSTILE, variant=HOSTILE),),
        segments=(SegmentReport(HOSTILE, (READING,)),),
    )
    reader = read(report_page(hostile, DOCUMENT, history()))
    assert "script" not in reader.seen
    assert HOSTILE in reader.text


def test_a_history_of_one_moment_is_drawn() -> None:
    """A single point has no span to divide by."""
    assert "<circle" in report_page(report(), DOCUMENT, history()[30:31])
