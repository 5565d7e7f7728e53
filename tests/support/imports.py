"""Who imports whom in this repository, read from the source text: for the structure tests and for `make test-fast`."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("models", "training", "serving", "deploy")
HEAVY = frozenset({"accelerate", "open_clip", "peft", "ray", "sklearn", "timm", "torch", "torchaudio", "transformers"})
"""Libraries that take a second or more to import."""


def imports(path: Path, *, late: bool = True) -> frozenset[str]:
    """The dotted names that a file imports: `from a.b import c` gives `a.b` and `a.b.c`.

    `late`: with the imports inside functions; those under `if TYPE_CHECKING` never count then, for they never run.
    """
    return _imports(path.read_text(encoding="utf-8"), late)


@cache
def _imports(source: str, late: bool) -> frozenset[str]:
    names: set[str] = set()
    for node in _statements(ast.parse(source), late):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def _statements(tree: ast.AST, late: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not late:
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        if isinstance(node, ast.stmt):  # no expression holds an import
            yield from _statements(node, late)


def module_file(name: str, root: Path = ROOT) -> Path | None:
    """The file of a module of this repository (`kauli.models.text.task`, `support.cli`), None for any other name."""
    first, _, rest = name.partition(".")
    if first not in ("kauli", "support"):
        return None
    base = root / (rest.replace(".", "/") if first == "kauli" else f"tests/{name.replace('.', '/')}")
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def files_imported(path: Path, *, late: bool = True, root: Path = ROOT) -> set[Path]:
    """The files of this repository that a file imports, without the `__init__.py` of packages on the way."""
    found = {module_file(name, root) for name in imports(path, late=late)}
    return {one for one in found if one is not None and one != path and one.name != "__init__.py"}


@cache
def is_heavy(path: Path) -> bool:
    """Whether a test file imports one of `HEAVY`: in itself anywhere, or in what it imports at module level."""
    seen, waiting = {path}, [path]
    while waiting:
        one = waiting.pop()
        late = one == path
        if HEAVY & {name.partition(".")[0] for name in imports(one, late=late)}:
            return True
        new = files_imported(one, late=late) - seen
        seen |= new
        waiting += new
    return False


def cycles(root: Path = ROOT) -> list[list[str]]:
    """Groups of product files that import each other at module level (Tarjan's strongly connected components)."""
    files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    graph = {path: files_imported(path, late=False, root=root) for path in files}
    number: dict[Path, int] = {}
    lowest: dict[Path, int] = {}
    stack: list[Path] = []
    found: list[list[str]] = []

    def visit(path: Path) -> None:
        number[path] = lowest[path] = len(number)
        stack.append(path)
        for other in graph[path]:
            if other not in number:
                visit(other)
                lowest[path] = min(lowest[path], lowest[other])
            elif other in stack:
                lowest[path] = min(lowest[path], number[other])
        if lowest[path] == number[path]:
            at = stack.index(path)
            group, stack[at:] = stack[at:], []
            if len(group) > 1:
                found.append(sorted(one.relative_to(root).as_posix() for one in group))

    for path in files:
        if path not in number:
            visit(path)
    return found
