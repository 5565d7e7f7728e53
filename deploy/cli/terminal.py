"""Shared by all commands: how a failure ends, common options, and how results are printed.

stdout holds the result alone, notes and progress go to stderr. Exit code 0, 1 (failed) or 2 (wrong use).
"""

import errno
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from kauli.models.errors import KauliError, UsageError

if TYPE_CHECKING:
    from kauli.serving.local import Answer


class Command(TyperGroup):
    """A group whose commands fail with one line on stderr instead of a traceback."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer's own context type is private
        """Run the command; a `KauliError` or a full or forbidden disk ends it with a message and an exit code."""
        try:
            return super().invoke(ctx)
        except KauliError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            where = f": {error.filename}" if error.filename else ""
            print(f"error: {error.strerror}{where}", file=sys.stderr, flush=True)
            raise typer.Exit(1) from None


Storage = Annotated[
    str | None,
    typer.Option("--storage", help="Folder or URI of adapters and runs [KAULI_STORAGE, else KAULI_HOME/store]."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; the value is YAML.")
]
AcceptTerms = Annotated[bool, typer.Option("--accept-terms", help="Accept the terms of use of a base.")]


def output(as_json: bool, result: Any, text: str) -> None:
    """Print a command's result on stdout: as JSON, or as `text`."""
    print(json.dumps(result, ensure_ascii=False, indent=2, default=str) if as_json else text)


def hint(text: str) -> None:
    """Print the next step to stderr."""
    print(f"Next: {text}", file=sys.stderr, flush=True)


def answer_fields(answer: "Answer") -> dict[str, Any]:
    """An answer in text as JSON has it, on every command."""
    route = answer.route
    usage = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
    return {
        "text": answer.text, "model": route.model, "base": route.base, "adapter": route.adapter,
        "language": route.language, "usage": usage,
    }  # fmt: skip


def split_list(text: str, option: str) -> list[str]:
    """`"sw, am"` as `["sw", "am"]`; an empty list is an error."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise UsageError(f"{option} is empty: give one or more, separated by commas, e.g. {option} sw,am")
    return list(dict.fromkeys(items))


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows as aligned text; lists are joined by commas, None is a dash, floats have three decimals."""
    lines = [list(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(value: Any) -> str:
    if value is None or value in ([], ()):
        return "-"
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)
