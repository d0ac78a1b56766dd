"""Following another registry, put together: what it takes, and what doors see of it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.control.arrivals import Arrivals
from gateway.control.mlflow import Follower, FollowerParts, Wishing
from gateway.control.registry import Registry
from gateway.core.following import Rules
from gateway.following_ports import FollowedRegistry, FollowMemory, Landing


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowSources:
    """What following takes from outside; `poll_s` is between two looks."""

    there: FollowedRegistry
    memory: FollowMemory
    landing: Callable[[Registry], Landing]
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


def follower_of(
    sources: FollowSources,
    registry: Registry,
    wishes: Wishing,
    leads: Callable[[], bool],
    now: Callable[[], float],
) -> Follower:
    """A follower of what the sources name."""
    return Follower(
        FollowerParts(
            there=sources.there,
            memory=sources.memory,
            registry=registry,
            arrivals=Arrivals(sources.there, sources.landing(registry), registry),
            wishes=wishes,
            leads=leads,
            now=now,
            rules=sources.rules,
            poll_s=sources.poll_s,
        )
    )
