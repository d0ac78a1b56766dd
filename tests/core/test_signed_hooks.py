import pytest

from gateway.core.errors import Unauthenticated
from gateway.core.signed_hooks import MAX_SKEW_S, check_hook, signature_of

SECRET, NOW = b"s3cret-of-webhook", 1795327314.0
BODY = (
    b'{"entity": "model_version_alias", "action": "created", '
    b'"timestamp": "2026-11-22T06:01:54.387504+00:00", '
    b'"data": {"name": "flight-delay", "alias": "champion", "version": "1"}}'
)
DELIVERY, TIMESTAMP = b"5568fe31-1b13-4c41-a5f0-cb29c138cb79", b"1795327314"
SIGNATURE = b"v1,FWhiI2HQdFt9usv1p0JRtd7bYjxvMnrGVGFkkxBtr/M="


def test_a_webhook_of_a_real_server_is_good() -> None:
    """As MLflow 3.17 sent and signed it."""
    assert signature_of(SECRET, DELIVERY, TIMESTAMP, BODY) == SIGNATURE
    check_hook(SECRET, (DELIVERY, TIMESTAMP, SIGNATURE), BODY, NOW)


@pytest.mark.parametrize(
    ("headers", "body", "secret"),
    [
        pytest.param((DELIVERY, TIMESTAMP, SIGNATURE), BODY + b" ", SECRET, id="body"),
        pytest.param((DELIVERY, TIMESTAMP, SIGNATURE), BODY, b"other", id="secret"),
        pytest.param((b"x", TIMESTAMP, SIGNATURE), BODY, SECRET, id="delivery"),
        pytest.param((DELIVERY, b"1795327315", SIGNATURE), BODY, SECRET, id="timestamp"),
        pytest.param((DELIVERY, TIMESTAMP, b""), BODY, SECRET, id="none"),
        pytest.param((DELIVERY, TIMESTAMP, SIGNATURE[3:]), BODY, SECRET, id="no-version"),
    ],
)
def test_whatever_was_changed_is_refused(
    headers: tuple[bytes, bytes, bytes], body: bytes, secret: bytes
) -> None:
    """Every part is signed."""
    with pytest.raises(Unauthenticated):
        check_hook(secret, headers, body, NOW)


@pytest.mark.parametrize("away", [-MAX_SKEW_S - 1, MAX_SKEW_S + 1])
def test_an_old_webhook_is_refused(away: float) -> None:
    """And one from the future, though it is signed well."""
    with pytest.raises(Unauthenticated):
        check_hook(SECRET, (DELIVERY, TIMESTAMP, SIGNATURE), BODY, NOW + away)


@pytest.mark.parametrize("timestamp", [b"", b"soon", b"-1795327314", b"1795327314.0", b"1" * 5000])
def test_a_timestamp_that_is_none_is_refused(timestamp: bytes) -> None:
    """Though it is signed well."""
    signed = signature_of(SECRET, DELIVERY, timestamp, BODY)
    with pytest.raises(Unauthenticated):
        check_hook(SECRET, (DELIVERY, timestamp, signed), BODY, NOW)
