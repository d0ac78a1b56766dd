"""Access, from outside: a token that is issued and revoked, and what workers make of it."""

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.gateways import Gateway, eventually
from tests.e2e.loads import BODY, PATH

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

PRINCIPAL = "/admin/v1/principals/airline"
WITHIN_S = 5.0


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a worker, at which an inference needs a token."""
    env = {"TILTYARD_HTTP_AUTH": "token"}
    made = Gateway(tmp_path_factory.mktemp("access"), env=env, workers=1).start()
    yield made
    made.close()


def test_a_revoked_token_is_refused_by_workers_within_seconds(gateway: Gateway) -> None:
    """Issued over the admin API, good at a worker; revoked, and refused there soon (A4, A12)."""
    document = {"schema": 1, "inference": [{"right": "infer", "models": ["flight-*"]}]}
    gateway.told("PUT", PRINCIPAL, document)
    issued = gateway.told("POST", f"{PRINCIPAL}/tokens", {"reason": "check-in"})
    shown = {"Authorization": f"Bearer {issued['token']}"}
    with httpx.Client(base_url=gateway.url, headers=shown) as client:
        eventually(lambda: client.post(PATH, content=BODY).status_code == 200, WITHIN_S)
        assert httpx.post(gateway.url + PATH, content=BODY).status_code == 401
        assert client.post("/v2/repository/models/flight-delay/load").status_code == 403
        gateway.told("DELETE", f"/admin/v1/tokens/{issued['id']}?reason=lost")
        eventually(lambda: client.post(PATH, content=BODY).status_code == 401, WITHIN_S)
    actions = [row["entry"]["action"] for row in gateway.told("GET", "/admin/v1/audit")["entries"]]
    governed = [action for action in actions if not action.startswith("model.")]
    assert governed[-3:] == ["principal.put", "token.issue", "token.revoke"]
    for secret in (issued["token"], gateway.token):
        assert secret not in gateway.log
