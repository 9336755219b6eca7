"""The results of `make chaos`: one JSON file that grows part by part, and the page that is made of it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_LIBRARIES = ("torch", "ray", "transformers", "mlflow")


class Results:
    """What was seen so far; written after every part, so that a part that fails costs no other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.parts: dict[str, Any] = json.loads(path.read_text())["parts"] if path.is_file() else {}

    @contextmanager
    def measured(self, part: str, seed: int, what: str) -> Iterator[dict[str, Any]]:
        """Fill the result of a part inside the block; `what` it does, seconds and load of the machine are added."""
        found: dict[str, Any] = {}
        started, load = time.monotonic(), os.getloadavg()[0]
        yield found
        found["run"] = {
            "what": what,
            "seed": seed,
            "seconds": round(time.monotonic() - started, 1),
            "load_before": round(load, 1),
            "load_after": round(os.getloadavg()[0], 1),
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "commit": _commit(),
        }
        self.parts[part] = found
        self.write()

    def write(self) -> None:
        """Write the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        body = {"machine": _machine(), "parts": self.parts}
        self._path.write_text(json.dumps(body, indent=1) + "\n")
        self._path.with_suffix(".md").write_text(render(body))


def render(body: Mapping[str, Any]) -> str:
    """Return the results as a Markdown page: one section per part, one row per number."""
    machine = body["machine"]
    lines = [
        "# Chaos results",
        "",
        "Written by `make chaos`: processes, nodes and servers are killed while they work; what is left is compared",
        "with an undisturbed run to the last bit. Method and meaning of each part: `tests/chaos`.",
        "",
        f"{machine['cores']} cores, {machine['system']}, Python {machine['python']}, "
        + ", ".join(f"{name} {number}" for name, number in machine["libraries"].items()),
    ]
    for part, found in body["parts"].items():
        run = found["run"]
        lines += [
            "",
            f"## {part}",
            "",
            run["what"],
            "",
            f"`make chaos PART={part} SEED={run['seed']}`, {run['date']}, commit {run['commit']}, {run['seconds']} s, "
            f"load {run['load_before']} before, {run['load_after']} after",
            "",
            "| what | seen |",
            "|---|---|",
        ]
        lines += [f"| {name} | {value} |" for name, value in _flatten(found) if not name.startswith("run: ")]
    return "\n".join(lines) + "\n"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}: ")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{prefix}{name}".replace("_", " "), text.replace("|", "\\|")


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }


def _commit() -> str:
    command = ["git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
