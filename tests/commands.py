"""The command line in the process of the test."""

from typer.testing import CliRunner

from simflow_plugin.cli.app import app


def succeed(*arguments: object) -> str:
    """Run `simflow ...` in this process, which must end with status 0; return its output."""
    status, output = simflow(*arguments)
    assert status == 0, output
    return output


def simflow(*arguments: object) -> tuple[int, str]:
    """Run `simflow ...` in this process; return (exit status, output)."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output
