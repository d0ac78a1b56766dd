"""The command `tiltyard`: all commands under one name."""

import typer

from gateway import __version__
from gateway.doors.cli import (
    audit,
    bundles,
    endpoints,
    experiments,
    gates,
    keys,
    ledger,
    mlflow,
    models,
    principals,
    records,
    retention,
    tokens,
    versions,
    webhooks,
)
from gateway.doors.cli.demo import demo
from gateway.doors.cli.front import Commands, FrontStep
from gateway.doors.cli.readouts import whatif
from gateway.doors.cli.serving import check, serve
from gateway.doors.cli.simulate import simulate
from gateway.doors.cli.status import status


def create_cli(front: FrontStep) -> typer.Typer:
    """The command line; a further command is one more line here, or is added to what returns."""
    cli = typer.Typer(
        name="tiltyard",
        cls=Commands,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="A model-serving gateway with built-in experimentation.",
    )

    @cli.callback(invoke_without_command=True)
    def tiltyard(
        ctx: typer.Context,
        *,
        version: bool = typer.Option(False, "--version", help="Print the version."),  # noqa: FBT003 - the default
    ) -> None:
        ctx.obj = front
        if version:
            typer.echo(__version__)
            raise typer.Exit

    for command in (serve, check, status, models.promote, models.rollback, demo, simulate, whatif):
        cli.command()(command)
    for name, command in bundles.COMMANDS.items():
        cli.command(name)(command)
    cli.command()(gates.approve)
    cli.command()(gates.unapprove)
    cli.add_typer(gates.app, name="gate")
    cli.command("register")(versions.register)
    cli.command()(audit.restore)
    cli.add_typer(audit.app, name="audit")
    cli.add_typer(models.app, name="models")
    cli.add_typer(endpoints.app, name="endpoints")
    cli.add_typer(experiments.app, name="experiment")
    cli.add_typer(ledger.app, name="ledger")
    cli.add_typer(principals.app, name="principal")
    cli.add_typer(tokens.app, name="token")
    cli.add_typer(keys.app, name="keys")
    cli.add_typer(records.app, name="records")
    cli.add_typer(retention.app, name="retention")
    cli.add_typer(webhooks.app, name="webhook")
    cli.add_typer(mlflow.app, name="mlflow")
    return cli
