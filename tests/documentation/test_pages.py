"""Commands, examples and links of the pages are true: they are taken from the pages and tried."""

import doctest
import functools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.documentation.sources import ROOT, project_files, relative

PAGES = project_files(".md")
OWN_PROGRAMS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
OTHER_PROGRAMS = {
    "apt-get",
    "cat",
    "cd",
    "docker",
    "export",
    "git",
    "journalctl",
    "mkdir",
    "mosquitto",
    "pip",
    "python",
}
OTHER_PROGRAMS |= {"python3", "source", "sudo", "systemctl"}
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{relative(self.page)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of ``page``."""
    content = page.read_text()
    return [
        Block(page, content.count("\n", 0, found.start()) + 1, found["language"], found["text"])
        for found in FENCE.finditer(content)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands_of(block: Block) -> list[list[str]]:
    """The command lines of a shell block, as words; in a ``console`` block, what stands after the prompt."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
    parts = [part for line in lines for part in re.split(r"&&|\|\||[|;]", line)]
    words = [shlex.split(part, comments=True) for part in parts]
    return [[word for word in line if not re.fullmatch(r"[A-Z_]+=.*", word)] for line in words if line]


COMMANDS = [
    (block, command)
    for block in BLOCKS
    if block.language in {"bash", "console", "sh", "shell"}
    for command in commands_of(block)
    if command
]


@functools.cache
def usage_of(program: str, *subcommands: str) -> str:
    """What ``program subcommands --help`` prints."""
    path = str(ROOT / program) if "/" in program else str(Path(sys.executable).with_name(program))
    environment = os.environ | {"FALLOW_ENVIRONMENT": sys.prefix, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    told = subprocess.run(
        [path, *subcommands, "--help"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, f"{program} {' '.join(subcommands)} --help: {told.stderr or told.stdout}"
    return told.stdout


@pytest.mark.parametrize(("block", "command"), COMMANDS, ids=[f"{block} {' '.join(line)}" for block, line in COMMANDS])
def test_a_command_on_a_page_exists_with_every_option_it_shows(block: Block, command: list[str]) -> None:
    program = command[0].removeprefix("./").removeprefix(".venv/bin/")
    if program in OTHER_PROGRAMS:
        return
    assert program in OWN_PROGRAMS or (ROOT / program).is_file(), f"{block}: no program {program}"
    words = command[1:]
    first_option = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    usage = usage_of(program, *[word for word in words[:first_option] if re.fullmatch(r"[a-z][a-z-]*", word)])
    options = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    assert [option for option in options if re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", usage) is None] == []


def blocks_in(*languages: str) -> list[Block]:
    """Every block of every page in one of ``languages``."""
    return [block for block in BLOCKS if block.language in languages]


def test_the_python_examples_on_the_pages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for block in blocks_in("python", "pycon"):
        if ">>>" in block.text:
            runner.run(doctest.DocTestParser().get_doctest(block.text, {}, str(block), str(block.page), block.line))
        else:
            exec(compile(block.text, str(block), "exec"), {})  # noqa: S102 -- our own page, which promises that it runs.
    assert runner.failures == 0


def test_the_data_examples_on_the_pages_parse() -> None:
    for block in blocks_in("json", "toml"):
        {"json": json.loads, "toml": tomllib.loads}[block.language](block.text)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_a_link_on_a_page_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text()))
    files = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in files if target and not (page.parent / target).exists()] == []
