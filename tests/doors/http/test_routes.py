from types import SimpleNamespace

import pytest

from gateway.core.errors import NotFound
from gateway.doors.http.inference import InferenceDoor
from gateway.doors.http.routes import MAX_PATH_BYTES, METHOD, TEMPLATES, Route, route_of


@pytest.mark.parametrize(
    ("path", "route"),
    [
        pytest.param(b"/", Route("alive"), id="root"),
        pytest.param(b"", Route("alive"), id="empty"),
        pytest.param(b"/v2", Route("server"), id="server"),
        pytest.param(b"/v2/", Route("server"), id="server-slash"),
        pytest.param(b"/v2/health/live", Route("live"), id="live"),
        pytest.param(b"/v2/health/ready", Route("ready"), id="ready"),
        pytest.param(b"/v2/models", Route("models"), id="models"),
        pytest.param(b"/v2/models/stats", Route("stats"), id="stats"),
        pytest.param(b"/v2/models/m", Route("model", "m"), id="model"),
        pytest.param(b"/v2/models/m/", Route("model", "m"), id="model-slash"),
        pytest.param(b"/v2/models/m/ready", Route("model_ready", "m"), id="model-ready"),
        pytest.param(b"/v2/models/m/config", Route("config", "m"), id="config"),
        pytest.param(b"/v2/models/m/stats", Route("model_stats", "m"), id="model-stats"),
        pytest.param(b"/v2/models/m/infer", Route("infer", "m"), id="infer"),
        pytest.param(b"/v2/models/versions/infer", Route("infer", "versions"), id="odd-name"),
        pytest.param(
            b"/v2/models/m/versions/12/infer", Route("infer", "m", 12), id="infer-version"
        ),
        pytest.param(b"/v2/models/m/versions/3", Route("model", "m", 3), id="model-version"),
        pytest.param(b"/v2/models/%6D%2D1/infer", Route("infer", "m-1"), id="encoded-letters"),
        pytest.param(b"/v2/repository/index", Route("index"), id="index"),
        pytest.param(b"/v2/repository/models/m/load", Route("load", "m"), id="load"),
        pytest.param(b"/v2/repository/models/m/unload", Route("unload", "m"), id="unload"),
        pytest.param(b"/v1/models", Route("v1_models"), id="v1-models"),
        pytest.param(b"/v1/models/m", Route("v1_model", "m"), id="v1-model"),
        pytest.param(b"/v1/models/m:predict", Route("predict", "m"), id="v1-predict"),
        pytest.param(b"/v1/models/m%3Apredict", Route("predict", "m"), id="v1-encoded-colon"),
        pytest.param(b"/v1/models/m/versions/2:predict", Route("predict", "m", 2), id="v1-version"),
        pytest.param(
            b"/v1/models/m/labels/canary:predict",
            Route("predict", "m", alias="canary"),
            id="v1-label",
        ),
    ],
)
def test_a_path_asks_for_something(path: bytes, route: Route) -> None:
    """Each path of the protocols is understood, with or without a slash at its end."""
    assert route_of(path) == route


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(b"/nope", id="unknown"),
        pytest.param(b"/v2//models", id="empty-part"),
        pytest.param(b"/v2/models//infer", id="no-name"),
        pytest.param(b"/v2/models/m/nope", id="unknown-action"),
        pytest.param(b"/v2/models/m/infer/more", id="longer"),
        pytest.param(b"/v2/models/m/versions/infer", id="no-version"),
        pytest.param(b"/v2/models/m/versions", id="only-versions"),
        pytest.param(b"/v2/models/m%2Finfer", id="encoded-slash"),
        pytest.param(b"/v2/models/a%2Fb/infer", id="slash-in-name"),
        pytest.param(b"/v2/models/%2e%2e/infer", id="encoded-dots"),
        pytest.param(b"/v2/models/../infer", id="dots"),
        pytest.param(b"/v2/models/%2e%2e%2fetc/infer", id="traversal"),
        pytest.param(b"/v2/models/a..b/infer", id="dots-inside"),
        pytest.param(b"/v2/models/m%00/infer", id="nul"),
        pytest.param(b"/v2/models/%ff%fe/infer", id="no-utf-8"),
        pytest.param(b"/v2/models/\xff/infer", id="raw-bytes"),
        pytest.param(b"/v2/models/%252f/infer", id="encoded-twice"),
        pytest.param(b"/v2/models/%zz/infer", id="no-hex"),
        pytest.param(b"/v2/models/m%0d%0aX:1/infer", id="line-break"),
        pytest.param(b"/v2/models/%20m/infer", id="space"),
        pytest.param(b"/v2/models/" + b"m" * 65 + b"/infer", id="long-name"),
        pytest.param(b"/v2/models/" + b"m" * MAX_PATH_BYTES, id="long-path"),
        pytest.param(b"/v2/models/m/versions/0/infer", id="version-zero"),
        pytest.param(b"/v2/models/m/versions/007/infer", id="version-zeros"),
        pytest.param(b"/v2/models/m/versions/-1/infer", id="version-sign"),
        pytest.param(b"/v2/models/m/versions/1e3/infer", id="version-float"),
        pytest.param(b"/v2/models/m/versions/v10/infer", id="version-letter"),
        pytest.param(b"/v2/models/m/versions/%D9%A1/infer", id="version-arabic-digit"),
        pytest.param(b"/v2/models/m/versions/9999999999/infer", id="version-long"),
        pytest.param(b"/v2/repository/other/models/m/load", id="named-repository"),
        pytest.param(b"/v2/repository/models/m/nope", id="repository-verb"),
        pytest.param(b"/v2/repository/models/..%2f/load", id="repository-traversal"),
        pytest.param(b"/v1/models/m:classify", id="v1-verb"),
        pytest.param(b"/v1/models/m/versions/2/x:predict", id="v1-longer"),
        pytest.param(b"/v1/models/m/labels:predict", id="v1-no-label"),
        pytest.param(b"/V2/models/m", id="upper-case"),
    ],
)
def test_any_other_path_is_not_found(path: bytes) -> None:
    """No encoding smuggles anything into a name, and the sentence repeats nothing dangerous."""
    with pytest.raises(NotFound) as caught:
        route_of(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_every_route_has_somebody_who_answers() -> None:
    """Routes, their methods and their templates name actions that the door knows."""
    parts = SimpleNamespace(desk=SimpleNamespace(pipeline=SimpleNamespace(worker=None)))
    known = set(InferenceDoor(parts)._actions)  # type: ignore[arg-type]
    assert set(METHOD) <= known
    assert set(TEMPLATES) == known | {"unknown"}


@pytest.mark.parametrize("action", sorted(TEMPLATES.keys() - {"unknown"}))
def test_a_template_is_a_path_of_its_route(action: str) -> None:
    """A template with a name in its place asks for the action that it stands for."""
    path = TEMPLATES[action].replace("{model_name}", "m")
    assert route_of(path.encode()).action == action
