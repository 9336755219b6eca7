"""The commands and settings that README and docs show are ones that the program takes."""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from jobs.cli import app
from jobs.config_source import CONFIG_FOLDER
from pipeline.config import load_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
REQUIRED = {
    "shards": "data.shards=[/data/*.tar]",
    "pretrain_mm_mlp_adapter": "model.pretrain_mm_mlp_adapter=/runs/pretrain",
}


def shown_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def shown_commands() -> Iterator[tuple[Path, list[str]]]:
    """Every `ray-llava VERB ...` of a bash block, those inside `submit -- VERB ...` and `-m jobs VERB ...` included."""
    for page in PAGES:
        for block in shown_blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["ray-llava"]:
                    yield page, words[1:]
                    if words[1:2] == ["submit"]:
                        yield page, words[words.index("--") + 1 :]
                elif "jobs" in words:
                    yield page, words[words.index("jobs") + 1 :]


COMMANDS = [pytest.param(words, id=f"{page.name}-{idx}") for idx, (page, words) in enumerate(shown_commands())]


def test_pages_show_commands_to_check() -> None:
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("words", COMMANDS)
def test_command_shown_is_parsed_by_its_verb(words: list[str]) -> None:
    verb, *arguments = words
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert verb in commands
    commands[verb].make_context(verb, list(arguments))


@pytest.mark.parametrize("words", COMMANDS)
def test_settings_shown_make_a_valid_config(words: list[str]) -> None:
    names = [value for option, value in itertools.pairwise(words) if option in ("-c", "--config")]
    included = [CONFIG_FOLDER / f"{name}.yaml" for name in names]
    if words[0] == "submit" or not all(path.is_file() for path in included):
        return  # a config that the reader writes
    for path in included:
        overrides = [word for word in words if re.match(r"[a-z_]+(\.[a-z_]+)*=", word)]
        shown = " ".join(overrides)
        load_config(path, [text for field, text in REQUIRED.items() if field not in shown] + overrides)


def test_config_shown_in_own_data_is_valid(tmp_path: Path) -> None:
    whole, *parts = shown_blocks(ROOT / "docs/howto/own_data.md", "yaml")
    path = tmp_path / "shown.yaml"
    path.write_text(whole, encoding="utf-8")
    assert load_config(path, []).stage == "finetune"
    for part in parts:
        sections = yaml.safe_load(whole)
        for name, section in yaml.safe_load(part).items():
            sections[name] = sections.get(name, {}) | section
            if "sources" in section:
                del sections["data"]["shards"]
        path.write_text(yaml.safe_dump(sections), encoding="utf-8")
        load_config(path, [])


SOURCE_PATH = re.compile(r"`((?:model|pipeline|jobs|benchmarks|tests|docs)/[\w./*-]*)`")
MODULE_NAME = re.compile(r"`(?:python -m )?((?:model|pipeline|jobs|benchmarks)(?:\.\w+)+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_modules_named_exist(page: Path) -> None:
    """Settings such as `model.vision_tower` begin like modules, so of dotted names only two levels of code count."""
    text = page.read_text(encoding="utf-8")
    assert [name for name in SOURCE_PATH.findall(text) if not list(ROOT.glob(name.rstrip("/")))] == []
    missing = []
    for name in MODULE_NAME.findall(text):
        parts = name.split(".")
        if (ROOT / parts[0] / parts[1]).exists() or (ROOT / parts[0] / f"{parts[1]}.py").exists():
            module = ROOT.joinpath(*parts)
            parent = module.parent  # a public name of a module
            if not (module.exists() or module.with_suffix(".py").exists() or parent.with_suffix(".py").exists()):
                missing.append(name)
        elif parts[0] != "model":
            missing.append(name)
    assert missing == []
