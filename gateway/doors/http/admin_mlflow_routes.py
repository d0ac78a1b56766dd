"""The rows of the admin API's table about following an MLflow registry."""

from typing import Any, Final

from msgspec import Struct

from gateway.core.principals import Action
from gateway.doors.http import admin_mlflow as mlflow
from gateway.doors.http.admin_calls import Operation

ROOT: Final = "/admin/v1/mlflow"


class LookAsked(Struct):
    """How often a look at MLflow was asked for, this one included."""

    asked: int


MLFLOW_OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="GET",
        path=ROOT,
        action=Action.READ,
        name="getMlflow",
        summary="How far following an MLflow registry is: the last look, what waits and why.",
        handle=mlflow.show_mlflow,
        answer=dict[str, Any],
    ),
    Operation(
        method="POST",
        path=f"{ROOT}/sync",
        action=Action.REGISTER,
        name="syncMlflow",
        summary="Have the leader look at the MLflow registry now.",
        handle=mlflow.sync_mlflow,
        answer=LookAsked,
    ),
)
