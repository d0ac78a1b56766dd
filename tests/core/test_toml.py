import tomllib

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.toml import toml_of

texts = st.text(max_size=20)
plain = (
    texts
    | st.integers(-(2**63), 2**63 - 1)
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
)
tables = st.dictionaries(texts, plain, max_size=4)
documents = st.dictionaries(texts, plain | tables | st.lists(tables, min_size=1, max_size=3))


@given(documents)
def test_what_is_written_is_read_back(document: dict[str, object]) -> None:
    """Whatever the texts hold: quotes, line breaks, control characters."""
    assert tomllib.loads(toml_of(document)) == document


def test_what_is_not_finite_becomes_a_text() -> None:
    """Lineage is kept as JSON, which has no word for it."""
    assert tomllib.loads(toml_of({"loss": float("nan")})) == {"loss": "nan"}
