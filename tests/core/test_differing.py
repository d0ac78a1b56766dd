from typing import Any

from msgspec.structs import replace

from gateway.core.differing import Difference, VersionFacts, diff
from gateway.core.inspections import BatchCost, GoldenAnswer, Inspection
from gateway.core.models import Manifest
from gateway.core.reviews import Check, CheckResult, Outcome
from tests.fakes import manifest_of, signature_of


def inspection(manifest: Manifest, **given: Any) -> Inspection:
    """A report."""
    return Inspection(
        schema=1,
        model=manifest.model,
        number=manifest.number,
        digest=manifest.digest,
        at=1.0,
        took_s=1.0,
        tools={},
        **{"checks": {Check.LOADS: CheckResult(Outcome.PASSED)}, **given},
    )


def rows(before: VersionFacts, after: VersionFacts) -> dict[tuple[str, str], tuple[Any, Any]]:
    """The differences by section and name."""
    found = diff(before, after).differences
    return {(row.section, row.name): (row.before, row.after) for row in found}


def test_every_section_tells_what_changed() -> None:
    """Lineage by dotted names, tensors, operators, sizes, checks, costs and golden outputs."""
    one = replace(manifest_of("m", 1), lineage={"metrics": {"auc": 0.7}, "trainer": "a"})
    two = replace(
        manifest_of("m", 2, content="longer"),
        lineage={"metrics": {"auc": 0.8}, "trainer": "a"},
        signature=signature_of(5),
    )
    answers = [
        GoldenAnswer("g", {"y": digest * 64}, {"y": (value,)})
        for digest, value in (("a", 0.5), ("b", 0.25))
    ]
    before = inspection(
        one, operators={"Gemm": 1}, parameters=4, costs=(BatchCost(1, 0.5, 1, 9),),
        golden=(answers[0],), opsets={"": 17},
    )  # fmt: skip
    after = inspection(
        two, operators={"Gemm": 2, "Relu": 1}, parameters=9, costs=(BatchCost(1, 0.25, 1, 9),),
        golden=(answers[1],), opsets={"": 17},
        checks={Check.LOADS: CheckResult(Outcome.FAILED, "", 3.0)},
    )  # fmt: skip
    found = rows(VersionFacts(one, before), VersionFacts(two, after))
    assert found == {
        ("lineage", "metrics.auc"): (0.7, 0.8),
        ("signature", "input x"): ("FP32 [-1, 4]", "FP32 [-1, 5]"),
        ("operators", "Gemm"): (1, 2),
        ("operators", "Relu"): (None, 1),
        ("size", "file model.onnx"): (2, 6),
        ("size", "parameters"): (4, 9),
        ("checks", "loads"): ("passed", "failed (3)"),
        ("costs", "1 rows, p50 ms"): (0.5, 0.25),
        ("golden", "g: y"): ("0.5 (aaaaaaaaaaaa)", "0.25 (bbbbbbbbbbbb)"),
    }


def test_nothing_differs_from_itself() -> None:
    """Equal bytes are said to be equal."""
    manifest = manifest_of("m", 1)
    facts = VersionFacts(manifest, inspection(manifest))
    told = diff(facts, facts)
    assert told.same_bytes
    assert told.differences == ()


def test_what_was_not_inspected_differs_in_what_is_known() -> None:
    """Without a report nothing is made up about operators and checks."""
    one, two = manifest_of("m", 1), manifest_of("m", 2, content="longer")
    told = diff(VersionFacts(one, None), VersionFacts(two, inspection(two, operators={"A": 1})))
    sections = {row.section for row in told.differences}
    assert sections == {"size"}
    assert Difference("size", "file model.onnx", 2, 6) in told.differences
