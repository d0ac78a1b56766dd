"""The desk: what inferences over HTTP need of their process, whichever door they came by."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gateway.core.access import Principal, Token, principal_of
from gateway.core.errors import NotFound, Unauthenticated
from gateway.core.oip.messages import Limits
from gateway.doors.http.answers import Answers
from gateway.doors.http.aside import Aside
from gateway.doors.http.inference_head import Head
from gateway.doors.http.readers import Readers
from gateway.doors.http.routes import Route
from gateway.serving.admission import Admission
from gateway.serving.calls import Clock
from gateway.serving.live import Served
from gateway.serving.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Desk:
    """What exchanges need of their process."""

    pipeline: Pipeline
    admission: Admission
    aside: Aside
    clock: Clock
    randbytes: Callable[[int], bytes]
    limits: Limits
    readers: Readers
    answers: Answers
    trace_ratio: float

    def find(self, route: Route) -> tuple[Served, int | None]:
        """What serves a route, and the version that it pins by number or by alias."""
        find, version = self.pipeline.find, route.version
        served = find(route.name, version)
        if route.alias is None:
            return served, version
        version = served.aliases.get(route.alias)
        if version is None:
            message = f"Model '{served.plan.model}' has no alias of that name."
            raise NotFound(message)
        return find(route.name, version), version

    def caller(self, head: Head, peer: str) -> str:
        """Who is held to a share of an endpoint: a token by its name, anyone else by address."""
        if head.authorization is None:
            return peer
        try:
            return self.principal(head).name
        except Unauthenticated:
            return peer

    def principal(self, head: Head) -> Principal:
        """Who asks."""
        secrets = self.pipeline.worker.secrets
        tokens: Iterable[Token] = () if secrets is None else secrets.tokens
        return principal_of(head.authorization, tokens)
