"""Model cards say what is known, and nothing that people wrote is read as markup."""

from html.parser import HTMLParser
from typing import Any

from msgspec.structs import replace

from gateway.core.cards import Card, Decided, Trial
from gateway.core.inspections import BatchCost, Inspection
from gateway.core.readings import Reading, Verdict
from gateway.core.reviews import Approval, Check, CheckResult, Outcome, Review
from gateway.doors.model_card import card_markdown, card_page
from tests.fakes import manifest_of

HOSTILE = '<script>alert("x")</script> | # `x` [a](http://b) **bold**'
CHECKS = {
    Check.LOADS: CheckResult(Outcome.PASSED, "It opens."),
    Check.LATENCY: CheckResult(Outcome.PASSED, "One row is quick.", 1.25),
    Check.GOLDEN: CheckResult(Outcome.FAILED, "Output 'y' of 'first' differs."),
    Check.AGREEMENT: CheckResult(Outcome.SKIPPED, "No recent inputs are kept."),
}
MANIFEST = manifest_of("flights", 2)
CARD = Card(
    model="flights",
    number=2,
    revision=9,
    made_at=1_800_000_000.0,
    standing=("champion",),
    manifest=replace(
        MANIFEST,
        lineage={"description": "Boosted trees", "metrics": {"auc": 0.71}, "months": [1, 2]},
    ),
    review=Review(
        MANIFEST.digest,
        registered_by="ana",
        registered_at=1_700_000_000.0,
        checks=CHECKS,
        approvals=(Approval("bo", ("approver",), 1_700_000_100.0, "looks right"),),
    ),
    inspection=Inspection(
        schema=1,
        model="flights",
        number=2,
        digest=MANIFEST.digest,
        at=1_700_000_000.0,
        took_s=0.4,
        tools={"onnxruntime": "1.31.1"},
        checks=CHECKS,
        operators={"ai.onnx.Gemm": 2, "ai.onnx.ml.Scaler": 1},
        parameters=12_345,
        costs=(BatchCost(1, 0.5, 1.25, 20), BatchCost(32, 3.2, 4.0, 20)),
        peak_mb=12.5,
    ),
    labels=("on time", "late"),
    trials=(
        Trial(
            experiment="ramp",
            variant="candidate",
            is_control=False,
            state="promoted",
            reason="",
            started_at=1_700_000_200.0,
            units=4_321,
            readings=(
                Reading(
                    name="log_loss",
                    variant="candidate",
                    role="goal",
                    verdict=Verdict.BETTER,
                    control=0.6,
                    treatment=0.5,
                    estimate=-0.1,
                    interval=(-0.15, -0.05),
                ),
            ),
        ),
    ),
    history=(
        Decided(1_700_000_300.0, 8, "ana", "model.promote", "it is better", forced=False),
        Decided(1_700_000_400.0, 9, "eve", "model.promote", "it burns", forced=True),
    ),
)


class Reader(HTMLParser):
    """Collects tags and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    """What a browser would make of it."""
    reader = Reader()
    reader.feed(page)
    return reader


def test_a_card_tells_every_part_in_both_forms() -> None:
    """Standing, digest, tensors, lineage, checks, runs, approvals, trials and decisions."""
    told = " ".join(read(card_page(CARD)).text)
    markdown = card_markdown(CARD).replace("\\", "")
    for fact in (
        "flights, version 2",
        "champion",
        MANIFEST.digest,
        "any × 4",
        "metrics.auc",
        "0.71",
        "1, 2",
        "Output 'y' of 'first' differs.",
        "No recent inputs are kept.",
        "12,345",
        "Gemm",
        "looks right",
        "4,321 units",
        "−0.1 [−0.15, −0.05]",
        "model.promote, by force",
        "it burns",
    ):
        assert fact in told
        assert fact in markdown


def test_the_newest_decision_stands_first() -> None:
    """Who looks wants to know what happened last."""
    markdown = card_markdown(CARD)
    assert markdown.index("it burns") < markdown.index("it is better")


def test_a_page_has_its_charts_and_no_script() -> None:
    """Run times, operators and the experiment's interval are drawn."""
    tags = read(card_page(CARD)).tags
    assert tags.count("svg") == 3
    assert "script" not in tags


def test_what_people_wrote_is_text_in_a_page() -> None:
    """Reasons, names and lineage hold no markup that would be followed."""
    page = read(card_page(_hostile()))
    assert "script" not in page.tags
    assert "a" not in page.tags
    assert any(HOSTILE in text for text in page.text)


def test_what_people_wrote_is_text_in_markdown() -> None:
    """No heading, link, code, table cell or tag begins in it."""
    for line in card_markdown(_hostile()).splitlines():
        bare = line.replace("\\\\", "")
        for sign in "`<[":
            assert bare.count(sign) == bare.count(f"\\{sign}")
        if "alert" in line and line.startswith("|"):
            columns = line.replace("\\|", "").count("|")
            assert columns in {5, 6, 7}


def test_a_card_of_little_is_short_and_says_so() -> None:
    """A version that was never inspected or tried has no empty parts."""
    bare = replace(CARD, review=None, inspection=None, trials=(), history=(), labels=())
    markdown = card_markdown(replace(bare, manifest=replace(MANIFEST, lineage={})))
    assert "It was never inspected." in markdown
    assert "Nothing was said of where it comes from." in markdown
    assert "## Experiments" not in markdown
    assert "## Decisions" not in markdown


def test_a_line_of_text_begins_nothing() -> None:
    """A description that looks like a heading or a list is none."""
    for start in ("# heading", "- item", "+ item"):
        lineage = {"description": start}
        card = replace(CARD, manifest=replace(MANIFEST, lineage=lineage))
        assert f"\n\\{start}" in card_markdown(card)


def _hostile() -> Card:
    lineage = {"description": HOSTILE, HOSTILE: HOSTILE}
    return replace(
        CARD,
        manifest=replace(MANIFEST, lineage=lineage),
        labels=(HOSTILE,),
        history=(Decided(1.0, 1, HOSTILE, HOSTILE, HOSTILE, forced=True),),
    )


def test_a_card_says_where_its_history_begins() -> None:
    """What is in archives of the audit log is not here."""
    assert "archives of the audit log" not in card_markdown(CARD)
    assert "archives of the audit log" in card_markdown(replace(CARD, history_since=5.0))
