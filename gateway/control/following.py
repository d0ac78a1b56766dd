"""Following another registry, put together: what it takes, and what doors see of it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.control.arrivals import ACTOR, Arrivals
from gateway.control.landing import RegistrarLanding
from gateway.control.mlflow import Follower, FollowerParts, Wishing
from gateway.control.registering import Registrar
from gateway.control.registry import Registry
from gateway.core.following import Rules
from gateway.following_ports import FollowedRegistry, FollowMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowSources:
    """What following takes from outside; `poll_s` is between two looks."""

    there: FollowedRegistry
    memory: FollowMemory
    rules: Rules
    poll_s: float


@dataclass(frozen=True, slots=True)
class MlflowDesk:
    """What the door needs of following; `secret` is None where no webhook is taken.

    `ask` has the leader look soon and tells how often that was asked; `now` is in UTC seconds.
    """

    status: Callable[[], Awaitable[Mapping[str, Any]]]
    ask: Callable[[], Awaitable[int]]
    secret: bytes | None
    now: Callable[[], float]


def follower_of(  # noqa: PLR0913 - what a follower works with
    sources: FollowSources,
    registry: Registry,
    registrar: Registrar,
    wishes: Wishing,
    *,
    leads: Callable[[], bool],
    now: Callable[[], float],
) -> Follower:
    """A follower of what the sources name."""
    return Follower(
        FollowerParts(
            there=sources.there,
            memory=sources.memory,
            registry=registry,
            arrivals=Arrivals(sources.there, RegistrarLanding(registrar, ACTOR), registry),
            wishes=wishes,
            leads=leads,
            now=now,
            rules=sources.rules,
            poll_s=sources.poll_s,
        )
    )
