import pytest

from gateway.core.errors import InvalidRequest
from gateway.settings import load, shown


def test_secrets_are_masked_wherever_settings_are_shown() -> None:
    """R16 R18 Token, URL and seal key are told as set, and never as what they are."""
    secret = "nobody-may-see-this"
    settings = load(
        {
            "TILTYARD_ADMIN_TOKEN": secret,
            "TILTYARD_REDIS_URL": f"rediss://user:{secret}@host",
            "TILTYARD_REDIS_SEAL_KEY": secret,
        }
    )
    tree = shown(settings)
    assert secret not in str(tree)
    assert tree["redis"]["seal_key"] == tree["redis"]["url"] == tree["admin"]["token"] == "*" * 8
    assert shown(load({}))["redis"]["seal_key"] is None


@pytest.mark.parametrize(
    ("key", "accepted"),
    [
        pytest.param("k" * 15, False, id="15 bytes"),
        pytest.param("k" * 16, True, id="16 bytes"),
        pytest.param("é" * 8, True, id="16 bytes of 8 characters"),
        pytest.param("", False, id="empty"),
    ],
)
def test_a_seal_key_is_long_enough(key: str, accepted: bool) -> None:
    """R16 A key that could be guessed is refused, and the sentence does not repeat it."""
    if accepted:
        assert load({"TILTYARD_REDIS_SEAL_KEY": key}).redis.seal_key == key
        return
    with pytest.raises(InvalidRequest, match="at least 16 bytes") as caught:
        load({"TILTYARD_REDIS_SEAL_KEY": key})
    assert not key or key not in str(caught.value)


def test_what_a_process_keeps_of_answers_is_bounded() -> None:
    """The bound may be set, and cannot be taken away."""
    assert load({}).cache.max_mb == 256
    assert load({"TILTYARD_CACHE_MAX_MB": "7"}).cache.max_mb == 7
    with pytest.raises(InvalidRequest, match=r"cache\.max_mb is 0; it must be above 0"):
        load({"TILTYARD_CACHE_MAX_MB": "0"})


@pytest.mark.parametrize(
    ("variable", "text"),
    [("MODE", "loose"), ("TIME_S", "0"), ("MEMORY_MB", "-1")],
)
def test_the_bounds_of_inspections_are_checked(variable: str, text: str) -> None:
    """They may be set, not taken away."""
    assert load({}).inspection.mode == "full"
    assert load({"TILTYARD_INSPECTION_MODE": "short"}).inspection.mode == "short"
    with pytest.raises(InvalidRequest, match="inspection"):
        load({f"TILTYARD_INSPECTION_{variable}": text})
