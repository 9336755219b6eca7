"""`python -m benchmarks.data_side --out results.json`: rates, memory and scale of the data side, all sides in one run.

Needs the extra `bench`. mosaicml-streaming takes part when it is installed; it is not a dependency. Results are written
as soon as they exist.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.config import ClusterConfig

PARTS = ("images", "loaders", "planning", "validation", "memory")
_PACKAGES = ("torch", "transformers", "simplejpeg", "pillow", "ray", "webdataset", "mosaicml-streaming", "pyarrow")


def main(
    out: Annotated[Path, typer.Option(help="JSON file for the results.")],
    part: Annotated[list[str] | None, typer.Option(help=f"{', '.join(PARTS)}; all by default.")] = None,
    quick: Annotated[bool, typer.Option(help="Small sizes: a try of a minute.")] = False,
    other_transformers: Annotated[
        Path | None, typer.Option(help="Folder with another version, whose image processor takes part.")
    ] = None,
) -> None:
    """Measure the data side on this machine."""
    parts = part or list(PARTS)
    if not set(parts) <= set(PARTS):
        raise typer.BadParameter(f"expected parts out of {', '.join(PARTS)}")
    results: dict[str, Any] = {"machine": describe_machine()}
    with tempfile.TemporaryDirectory() as folder:
        for name, measure in _measurements(Path(folder), quick, other_transformers).items():
            if name in parts:
                results[name] = measure()
                results["machine"]["load_after"] = os.getloadavg()[0]
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
                print(f"{name}: {json.dumps(results[name])}", flush=True)


def _measurements(
    folder: Path, quick: bool, other_transformers: Path | None
) -> dict[str, Callable[[], dict[str, Any]]]:
    from benchmarks.data.data_scale import measure_memory, measure_planning, measure_validation
    from benchmarks.data.image_path import measure_image_path
    from benchmarks.data.loaders import measure_loaders
    from pipeline.launch.on_ray.cluster import join_cluster

    def loaders() -> dict[str, Any]:
        join_cluster(ClusterConfig(data_workers=2))
        return measure_loaders(folder / "loaders", 768 if quick else 4096, 1 if quick else 5)

    return {
        "images": lambda: measure_image_path(2 if quick else 20, other_transformers),
        "planning": lambda: measure_planning(1_000_000 if quick else 100_000_000),
        "validation": lambda: measure_validation(folder / "validation", 50 if quick else 1000),
        "memory": lambda: measure_memory(folder / "memory", 256 if quick else 20_000, 64 if quick else 1000),
        "loaders": loaders,
    }


def describe_machine() -> dict[str, Any]:
    """Return cores, load and versions."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {"cores": len(os.sched_getaffinity(0)), "load_before": os.getloadavg()[0], "versions": versions}


if __name__ == "__main__":
    typer.run(main)
