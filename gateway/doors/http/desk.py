"""The desk: what inferences over HTTP need of their process, whichever door they came by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.core.access import Principal, require_right
from gateway.core.errors import NotFound, Unauthenticated
from gateway.core.oip.messages import Limits
from gateway.core.principals import Right
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
    """What exchanges need of their process.

    A plain head that states no more than `plain_bytes` needs no further look; it is below 0 where
    every inference needs a token.
    """

    pipeline: Pipeline
    admission: Admission
    aside: Aside
    clock: Clock
    randbytes: Callable[[int], bytes]
    limits: Limits
    readers: Readers
    answers: Answers
    trace_ratio: float
    plain_bytes: int

    @property
    def needs_token(self) -> bool:
        """Whether an inference needs a token with the right `infer`."""
        return self.plain_bytes < 0

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

    def caller(self, head: Head, peer: str, model: str) -> str:
        """Who is held to a share of an endpoint: a token by its name, anyone else by address.

        Whether they may infer, and force a variant, is decided for each request anew, also where
        its head was told at a glance.

        Raises:
            Unauthenticated, Forbidden: they may not.
        """
        force = None if head.is_plain else head.force
        if self.needs_token or force is not None:
            principal = self.principal(head)
            if self.needs_token:
                require_right(principal, Right.INFER, model)
            if force is not None:
                require_right(principal, Right.FORCE, model)
            return principal.name
        try:
            return peer if head.authorization is None else self.principal(head).name
        except Unauthenticated:
            return peer

    def principal(self, head: Head) -> Principal:
        """Who asks.

        Raises:
            Unauthenticated: nobody that is known here.
        """
        tokens = self.pipeline.worker.tokens
        return tokens.principal(head.authorization, self.clock.unix_ns() / _SECOND_NS)


_SECOND_NS: Final = 1_000_000_000
