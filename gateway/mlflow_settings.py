"""Settings of following an MLflow registry; part of the tree in `gateway.settings`."""

from typing import Final

from gateway.secret_settings import Masked

MLFLOW_SECRETS: Final = frozenset(
    ("mlflow", name) for name in ("token", "password", "webhook_secret")
)


class MlflowSettings(Masked, frozen=True, forbid_unknown_fields=True):
    """Which MLflow registry is followed, if any."""

    hidden = frozenset(name for _, name in MLFLOW_SECRETS)

    url: str | None = None
    """`http://` or `https://`, without a login; nothing is followed unless it is set."""
    token: str | None = None
    """Sent as a bearer token."""
    user: str | None = None
    password: str | None = None
    """Sent as basic authorization."""
    models: tuple[str, ...] = ("*",)
    """Patterns of models' names here; in the environment, separated by commas."""
    names: tuple[str, ...] = ()
    """`there=here` for models that are called otherwise here; they are followed in any case."""
    aliases: tuple[str, ...] = ("champion=champion",)
    """`there=here` for aliases whose moves become promotion requests here."""
    artifact: str = "model.onnx"
    """The model's file below a version's source; files beside it are taken along."""
    max_mb: int = 2048
    """All files of one version, in units of 1,048,576 bytes."""
    poll_s: float = 10.0
    """How often the registry is looked at; a webhook comes sooner."""
    timeout_s: float = 10.0
    """Of one answer of the registry, and of each time that nothing of a file arrives."""
    webhook_secret: str | None = None
    """What webhooks are signed with; without it none is taken."""
