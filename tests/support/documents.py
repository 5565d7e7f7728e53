"""The commands and snippets of the documents: taken out of Markdown, and run as a reader would."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from support.cli import run as run_command
from support.imports import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", *(str(one.relative_to(ROOT)) for one in sorted((ROOT / "docs").rglob("*.md")))]
ADDRESS = "127.0.0.1:8000"
"""Where the documents' service is; the one of the tests has another port."""
CHECKED_ONLY = {
    r"kauli (serve|demo)\b": "runs until it is stopped; the service of these pages runs in this process",
    r"kauli .*(s3|hf)://": "needs an object store",
    r"kauli .*\b(Qwen|google|openai|facebook|HuggingFaceTB|laion)/": "needs the hub",
    r"kauli certify\b": "needs 60 validation rows; tests/deploy/test_cli_certify.py runs it",
    r"kauli compare .*--folds": "trains ten times; tests/training/test_compare.py does so",
    r"kauli adapters promote \S+ prod$": "asks for a certificate, which that test makes",
    r"make\b": "sets up or tests the environment that this test runs in; the target must exist",
    r"(\.venv/bin/)?python (tests/bench|docs)/": "measures for minutes; the options must exist",
    r"lm_eval\b": "starts a process of its own; a test of the service runs it",
    r"(\.venv/bin/|uv )?pip install\b": "changes the environment; the packages must be ones that kauli declares",
    r"kauli .*--address\b": "needs a cluster; tests/deploy/test_cluster_doctor.py starts one",
    r"(docker|kubectl|helm|ray job|echo|cd|aws)\b": "needs Docker, Kubernetes or a cluster",
    r"(cp -a|rm -r|kauli doctor --storage) .*\bstore\b": "tests/deploy/test_backup.py does so, in this order",
    r"(source|git clone)\b": "the reader's own shell and copy",
}
"""What is not run, and why; of these, command, options and targets are checked. Everything else is run."""


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: str
    line: int
    language: str
    """That of its fence; "" where it has none, as an indented block: these hold commands."""
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, text: str) -> Iterator[Block]:
    """The fenced and the indented blocks of a page, in order; `line` is that of the first line inside, from 1."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        if fence := re.match(r"\s*```+\s*([\w+-]*)", lines[at]):
            end = next(place for place in range(at + 1, len(lines)) if lines[place].strip().startswith("```"))
            yield Block(page, at + 2, fence[1], "\n".join(lines[at + 1 : end]))
            at = end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            inside = list(takewhile(lambda line: line.startswith("    ") or not line.strip(), lines[at:]))
            yield Block(page, at + 1, "", "\n".join(line.removeprefix("    ") for line in inside))
            at += len(inside)
        else:
            at += 1


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """(place, words) of each command of a shell block; a line that ends in a backslash goes on."""
    text, started = "", block.line
    for number, line in enumerate(block.text.split("\n"), start=block.line):
        started = started if text else number
        text += line.rstrip("\\") if line.endswith("\\") else line
        if line.endswith("\\") or text.count("'") % 2:
            text += "" if line.endswith("\\") else "\n"
            continue
        if words := shlex.split(text, comments=True):
            yield f"{block.page}:{started}", words
        text = ""
    assert not text, f"{block.where}: a command without its end"


def mentions(text: str) -> list[list[str]]:
    """The words of the commands in the running text of a page: `kauli ...` in backticks."""
    found = re.findall(r"(?<!`)`((?:kauli|make)\s[^`]+)`(?!`)", re.sub(r"(?ms)^\s*```.*?^\s*```", "", text))
    return [shlex.split(" ".join(one.split())) for one in found]


@dataclass
class Reader:
    """Runs the blocks of one page in a folder, with a service where one is asked for."""

    folder: Path
    patch: pytest.MonkeyPatch
    address: Callable[[], str]
    """host:port of a running service."""
    done: set[tuple[str, ...]] = field(default_factory=set)
    """Commands that were run before and need no second time: training."""
    names: dict[str, Any] = field(default_factory=dict)
    """The variables of the page's Python."""

    def run(self, block: Block) -> None:
        """Run or check a block; AssertionError says where and what is wrong."""
        if block.language in ("", "sh", "bash", "shell", "console"):
            for place, words in commands(block):
                self.command(place, words)
        elif block.language == "python":
            code = "\n" * (block.line - 1) + block.text.replace(ADDRESS, self._address(block.text))
            exec(compile(code, block.page, "exec"), self.names)
        elif block.language == "yaml":
            check_yaml(block)
        elif block.language == "json":
            json.loads(block.text)
        else:
            assert block.language in ("text", "markdown"), f"{block.where}: no rule for ```{block.language}"

    def command(self, place: str, words: list[str]) -> None:
        """Run one command, or check it where `CHECKED_ONLY` says so."""
        if words[0] == "export":
            for name, _, value in (word.partition("=") for word in words[1:]):
                self.patch.setenv(name, value)
            return
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            self.patch.setenv(name, value)
        words[0] = words[0].removeprefix(".venv/bin/")
        line = shlex.join(words)
        if any(re.match(pattern, " ".join(words)) for pattern in CHECKED_ONLY):
            check(words, place)
        elif words[0] == "kauli":
            self._kauli(place, words[1:])
        elif words[0] == "curl":
            self._curl(place, words)
        else:
            raise AssertionError(f"{place}: no rule runs `{line}`")

    def _kauli(self, place: str, words: list[str]) -> None:
        key = tuple(words)
        if words[0] == "train" and key in self.done:
            return
        redirect = words.index(">") if ">" in words else len(words)
        result = run_command(*words[:redirect])
        assert result.exit_code == 0, f"{place}: kauli {shlex.join(words)}\n{result.stderr}\n{result.exception!r}"
        for line in re.findall(r"(?m)^Next: (.+)$", result.stderr):  # what it advises must exist as well
            for advised in re.split(r"; |, or ", line):
                if advised.startswith("kauli "):
                    check_kauli(shlex.split(advised)[1:], f"{place}: Next")
        if redirect < len(words):
            (self.folder / words[redirect + 1]).write_text(result.stdout, encoding="utf-8")
        self.done.add(key)

    def _curl(self, place: str, words: list[str]) -> None:
        sent = [os.path.expandvars(word).replace(ADDRESS, self._address(word)) for word in words]
        found = subprocess.run(
            [sent[0], "--silent", "--show-error", "--fail-with-body", "--max-time", "60", *sent[1:]],
            cwd=self.folder, capture_output=True, text=True,
        )  # fmt: skip
        assert found.returncode == 0, f"{place}: {shlex.join(words)}\n{found.stderr}{found.stdout[:2000]}"

    def _address(self, text: str) -> str:
        return self.address() if ADDRESS in text else ADDRESS


def check(words: Sequence[str], place: str) -> None:
    """Check a command without running it: it exists, and so does every option, target, file and package it names."""
    if words[0] == "kauli":
        check_kauli(words[1:], place)
    elif words[0] == "make":
        targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
        named = {word for word in words[1:] if "=" not in word}
        assert named <= targets, f"{place}: no target {named - targets}"
    elif words[0] == "python":
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        unknown = [word for word in words[2:] if word.startswith("--") and f'"{word}"' not in source]
        assert unknown == [], f"{place}: {words[1]} has no {unknown}"


def check_kauli(words: Sequence[str], place: str) -> None:
    """`kauli WORDS` names a command that exists, and options that it has; a recipe's keys are right.

    A word in capitals stands for what the reader gives (NAME, FILE): its value is not checked.
    """
    from kauli.deploy.cli.main import app

    command: Any = typer.main.get_command(app)
    rest = list(words)
    while rest and hasattr(command, "commands") and not rest[0].startswith(("-", "...")):
        assert rest[0] in command.commands, f"{place}: there is no command kauli {' '.join(words)}"
        command = command.commands[rest.pop(0)]
    options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
    unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in options]
    assert unknown == [], f"{place}: kauli {' '.join(words)}: no option {unknown}"
    if words and words[0] in ("train", "compare") and len(rest) > 0 and not re.fullmatch(r"[A-Z]+|\.\.\.", rest[0]):
        from kauli.training.recipe_file import load_recipe, recipe_names

        changes = [value for option, value in pairwise(rest) if option == "--set"]
        filled = [re.sub(r"=(TAG|L)$", "=sw", re.sub(r"=(NAME|N)$", "=name", one)) for one in changes]
        if rest[0] in recipe_names():
            load_recipe(rest[0], filled)


def check_yaml(block: Block) -> None:
    """A recipe, or settings of the service."""
    from kauli.serving.settings import parse_settings
    from kauli.training.recipe_file import parse_recipe

    content = yaml.safe_load(block.text)
    (parse_recipe if "method" in content or "task" in content else parse_settings)(content)
