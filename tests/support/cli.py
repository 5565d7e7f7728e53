"""The `kauli` command called in this process, and how it must fail."""

from typing import Any

from typer.testing import CliRunner, Result

from kauli.deploy.cli.main import app


def run(*words: str, **options: Any) -> Result:
    return CliRunner().invoke(app, list(words), **options)


def fails(code: int, message: str, *words: str) -> None:
    """The command ends with `code`, says `message` once on stderr, and prints no result and no traceback."""
    result = run(*words)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) <= 6
