"""Following an MLflow registry, as the settings have it."""

import time

from gateway.adapters.mlflow import MlflowRegistry
from gateway.adapters.redis import RedisFollowing
from gateway.control.following import FollowSources, MlflowDesk
from gateway.control.mlflow import Follower
from gateway.core.following import rules_of
from gateway.mlflow_settings import MlflowSettings
from gateway.processes.stores import Stores
from gateway.settings import Settings


def sources_of(settings: Settings, stores: Stores) -> FollowSources:
    """What following takes from outside.

    Raises:
        InvalidRequest: a setting of mlflow is wrong.
    """
    mlflow = settings.mlflow
    return FollowSources(
        rules=rules_of(mlflow.models, mlflow.names, mlflow.aliases),
        there=MlflowRegistry(mlflow),
        memory=stores.made(RedisFollowing),
        poll_s=mlflow.poll_s,
    )


def desk_of(settings: MlflowSettings, follower: Follower | None) -> MlflowDesk | None:
    """What the admin door sees of it."""
    if follower is None:
        return None
    secret = settings.webhook_secret
    return MlflowDesk(
        status=follower.status,
        ask=follower.ask,
        secret=secret.encode() if secret else None,
        now=time.time,
    )
