"""Each row of the lists of bad models (M) and bad admin requests (A) is named by tests."""

import ast
import re
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parents[1]
ROWS: Final = {
    **{f"M{number}": 2 for number in range(1, 26)},
    **{f"A{number}": 1 for number in range(1, 18)},
}
"""Every row, and how many tests name it at least: models are tried in the sandbox and outside."""
_ROW: Final = re.compile(r"\b[MA]\d{1,2}\b")


def rows_in(test: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """The rows that a test says it shows: in its docstring, or in the ids of its parameters."""
    texts = [ast.get_docstring(test) or ""]
    for decorator in test.decorator_list:
        texts += [
            node.value
            for node in ast.walk(decorator)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
    return {row for text in texts for row in _ROW.findall(text)}


@pytest.fixture(scope="module")
def named() -> Counter[str]:
    """How many tests name each row."""
    found: Counter[str] = Counter()
    for page in sorted(TESTS.rglob("test_*.py")):
        text = page.read_text(encoding="utf-8")
        if _ROW.search(text) is None:
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("test_"):
                found.update(rows_in(node))
    return found


@pytest.mark.parametrize(("row", "tests"), ROWS.items(), ids=ROWS)
def test_every_row_is_shown_by_tests(named: Counter[str], row: str, tests: int) -> None:
    """A row that nobody names any more is a promise that nobody keeps."""
    assert named[row] >= tests
