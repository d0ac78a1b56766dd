from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import InvalidRequest, TooLarge
from gateway.doors.bundle_texts import MAX_TEXT_BYTES, Format, read_documents, write_document

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ("no", "yes", "on", "null", "~", "true", "1", "1e3", "0x1", "2026-01-01", "<<", "=", "", "- a")
)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)


def tables(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Tables of values, of lists of them, and of tables, three levels deep."""
    inner = st.dictionaries(TEXTS, values | st.lists(values, max_size=3), max_size=3)
    outer = st.dictionaries(TEXTS, values | inner | st.lists(inner, max_size=2), max_size=3)
    return st.dictionaries(TEXTS, outer | values, min_size=1, max_size=3)


@settings(max_examples=100, deadline=None)
@given(document=tables(TEXTS | NUMBERS | st.booleans()), form=st.sampled_from(("toml", "json")))
def test_what_is_written_is_read_as_the_same(document: Any, form: Format) -> None:
    """Whatever the words look like."""
    assert read_documents(write_document(document, form).encode(), form) == [document]


@settings(max_examples=100, deadline=None)
@given(document=tables(TEXTS | NUMBERS | st.booleans() | st.none()))
def test_yaml_that_is_written_is_read_as_the_same(document: Any) -> None:
    """Words that YAML readers take for something else are quoted."""
    assert read_documents(write_document(document, "yaml").encode(), "yaml") == [document]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("1e999", "1e999"),
        (".inf", ".inf"),
        ("-3", -3),
        ("1e3", 1000.0),
        ("true", True),
        ("~", None),
        ("'1'", "1"),
        ("", None),
    ],
)
def test_yaml_has_the_words_of_json_and_no_others(text: str, value: object) -> None:
    """A country is no truth value, and a date no object."""
    assert read_documents(f"a: {text}".encode(), "yaml") == [{"a": value}]


def test_keys_are_text_as_it_stands() -> None:
    """A name may look like a number, and nothing is merged in."""
    text = b"1: a\nnull: b\nyes: c\n<<: {d: 1}\n"
    assert read_documents(text, "yaml") == [{"1": "a", "null": "b", "yes": "c", "<<": {"d": 1}}]


def test_references_may_be_used_in_yaml() -> None:
    """Each use is a value of its own."""
    text = b"a: &x {k: [1]}\nb: *x\n---\nc: 1\n---\n"
    assert read_documents(text, "yaml") == [{"a": {"k": [1]}, "b": {"k": [1]}}, {"c": 1}]


def test_dates_of_toml_are_the_text_that_documents_hold() -> None:
    """A freeze begins at one."""
    text = b"a = 2026-01-01T00:00:00+01:00\n[[b]]\nc = 2026-01-01\n"
    found = [{"a": "2026-01-01T00:00:00+01:00", "b": [{"c": "2026-01-01"}]}]
    assert read_documents(text, "toml") == found


LAUGHS = b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (level, level, b", ".join([b"*a%d" % (level - 1)] * 10))
    for level in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "form", "sentence"),
    [
        (b"a: 1\na: 2", "yaml", "key 'a' stands twice in one table in line 2"),
        (b"a: !!python/object:os.system x", "yaml", "tags such as"),
        (b"a: !mine {}", "yaml", "tags such as '!mine'"),
        (b"a: &x [*x]", "yaml", "nested deeper than 64"),
        (b"[" * 1_000, "yaml", "nested deeper than 64"),
        (b"? [a]\n: b", "yaml", "a key is text"),
        (b"a: *b", "yaml", "undefined alias"),
        (b"a: [1", "yaml", "in line 1"),
        (b"- a", "yaml", "a bundle is a table"),
        (b"a: \xff", "yaml", "it is no YAML"),
        (b"a: \x07", "yaml", "it is no YAML"),
        (b"a = 1\na = 2", "toml", "it is no TOML"),
        (b"a = inf", "toml", "no number that documents hold"),
        (b"a = " + b"[" * 5_000, "toml", "it is no TOML"),
        (b'{"a": 1, "a": 2}', "json", "key 'a' stands twice in one object"),
        (b'{"a": NaN}', "json", "no number that documents hold"),
        (b'{"a": 1e999}', "json", "no number that documents hold"),
        (b"[" * 100_000, "json", "nested deeper"),
        (b"[1]", "json", "a bundle is a table"),
        (b"", "json", "it is no JSON"),
    ],
    ids=range(20),
)
def test_what_is_no_document_is_refused_with_a_sentence(
    text: bytes, form: Format, sentence: str
) -> None:
    """It says what is wrong, and where as far as that is known."""
    with pytest.raises(InvalidRequest, match=sentence):
        read_documents(text, form)


def test_references_that_repeat_without_bound_are_refused() -> None:
    """A few lines may stand for billions of values."""
    with pytest.raises(TooLarge, match="do references repeat them"):
        read_documents(LAUGHS, "yaml")


def test_a_text_beyond_all_bounds_is_not_read() -> None:
    """Nothing of it is looked at."""
    with pytest.raises(TooLarge, match="at most"):
        read_documents(b" " * (MAX_TEXT_BYTES + 1), "yaml")


def test_toml_says_where_a_null_stands() -> None:
    """It has no word for it."""
    with pytest.raises(InvalidRequest, match=r"at experiments\.x\.unit; write YAML or JSON"):
        write_document({"experiments": {"x": {"unit": None}}}, "toml")
