import logging
from collections.abc import Iterator

import pytest

from gateway.core import errors
from gateway.core.errors import GatewayError
from gateway.doors.errors import (
    HTTP_STATUS,
    RETRY_AFTER_S,
    headers_of,
    sentence_of,
    status_of,
)


def subclasses(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
    """Every error below this one."""
    for below in kind.__subclasses__():
        yield below
        yield from subclasses(below)


OURS = [kind for kind in subclasses(GatewayError) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status(kind: type[GatewayError]) -> None:
    """No error that is raised on purpose is answered by accident."""
    assert kind in HTTP_STATUS


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_what_may_be_tried_again_says_when(kind: type[GatewayError]) -> None:
    """Every 503 and 429 has a Retry-After, and nothing else does."""
    assert (kind in RETRY_AFTER_S) == (HTTP_STATUS[kind] in (429, 503))
    stated = dict(headers_of(kind("No."))).get(b"retry-after")
    assert (stated is not None) == (kind in RETRY_AFTER_S)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        pytest.param(errors.InvalidRequest("No."), 400, id="invalid"),
        pytest.param(errors.Unauthenticated("No."), 401, id="unauthenticated"),
        pytest.param(errors.Forbidden("No."), 403, id="forbidden"),
        pytest.param(errors.NotFound("No."), 404, id="not-found"),
        pytest.param(errors.Conflict("No."), 409, id="conflict"),
        pytest.param(errors.TooLarge("No."), 413, id="large"),
        pytest.param(errors.UnsupportedMedia("No."), 415, id="media"),
        pytest.param(errors.EngineFailed("No."), 500, id="engine"),
        pytest.param(errors.Unsupported("No."), 501, id="unsupported"),
        pytest.param(errors.UpstreamFailed("No."), 502, id="upstream"),
        pytest.param(errors.Overloaded("No."), 503, id="overloaded"),
        pytest.param(errors.NotReady("No."), 503, id="not-ready"),
        pytest.param(errors.DeadlineExceeded("No."), 503, id="deadline"),
        pytest.param(GatewayError("No."), 500, id="any-other-of-ours"),
        pytest.param(KeyError("/secret"), 500, id="unforeseen"),
    ],
)
def test_the_status_is_the_one_that_clients_expect(error: Exception, status: int) -> None:
    """Statuses are those of the protocol's peers and of HTTP."""
    assert status_of(error) == status


def test_who_is_not_known_is_told_how_to_be() -> None:
    """A 401 names the scheme."""
    assert headers_of(errors.Unauthenticated("Who?")) == [(b"www-authenticate", b"Bearer")]


def test_an_unknown_coding_is_told_the_known_ones() -> None:
    """A 415 for its coding says which codings are read; one for its media type does not."""
    told = headers_of(errors.UnsupportedMedia("Content-Encoding 'br' is not spoken here."))
    assert told == [(b"accept-encoding", b"gzip, deflate")]
    assert headers_of(errors.UnsupportedMedia("Send JSON.")) == []


def test_an_unforeseen_error_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """The caller learns nothing of what nobody meant to say; the log has all of it."""
    with caplog.at_level(logging.ERROR):
        sentence = sentence_of(KeyError("/secret/path"))
    assert sentence == "The gateway failed; its log says more."
    assert "/secret/path" in caplog.text


def test_the_cause_of_a_failed_run_is_logged_and_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a model raised stands in the log only."""
    error = errors.EngineFailed("The model failed to run on this input.")
    error.__cause__ = RuntimeError("/onnxruntime_src/core.cc:42")
    with caplog.at_level(logging.WARNING):
        assert sentence_of(error) == "The model failed to run on this input."
    assert "core.cc:42" in caplog.text
