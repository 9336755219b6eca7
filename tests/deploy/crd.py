"""Manifests against the schema of a CustomResourceDefinition, as an API server with strict validation checks them.

`python -m tests.deploy.crd FOLDER` checks `deploy/kuberay` against the definitions of KubeRay's operator in FOLDER
(`ray.io_rayclusters.yaml` and `ray.io_rayjobs.yaml`), and writes down the types of the fields in use, with which the
tests check the manifests without those files: `kuberay_fields.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).parents[2] / "deploy" / "kuberay"
FIELDS = Path(__file__).parent / "kuberay_fields.json"
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "boolean": (bool,), "object": (dict,), "array": (list,),
    "number": (int, float),
}  # fmt: skip


def walk(value: Any, schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield `(path, type)` of every field of a manifest.

    Raises:
        ValueError: a field is unknown, missing or of another type; names it.
    """
    kind = schema.get("type", "any")
    if schema.get("x-kubernetes-int-or-string"):
        kind = "int-or-string"
    allowed = (int, str) if kind == "int-or-string" else _TYPES.get(kind, (object,))
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind not in ("boolean", "any")):
        raise ValueError(f"{path}: expected {kind}, found {value!r}")
    if "enum" in schema and value not in schema["enum"]:
        raise ValueError(f"{path}: expected one of {schema['enum']}, found {value!r}")
    yield path, kind
    if isinstance(value, dict):
        properties, free = schema.get("properties", {}), schema.get("additionalProperties")
        if missing := [name for name in schema.get("required", []) if name not in value]:
            raise ValueError(f"{path}: {missing} missing")
        for name, part in value.items():
            known = properties.get(name, free if isinstance(free, dict) else None)
            if known is None and not schema.get("x-kubernetes-preserve-unknown-fields"):
                raise ValueError(f"{path}.{name}: no such field")
            yield from walk(part, known or {}, f"{path}.{name}" if name in properties else f"{path}.*")
    elif isinstance(value, list):
        for part in value:
            yield from walk(part, schema.get("items", {}), f"{path}[]")


def check_known(value: Any, fields: dict[str, str], path: str = "spec") -> None:
    """Check a manifest against the fields that were written down.

    Raises:
        ValueError: a field is not among them, or of another type; names it.
    """
    if path not in fields:
        raise ValueError(f"{path}: not checked against KubeRay's definition; run `python -m tests.deploy.crd FOLDER`")
    kind = fields[path]
    allowed = (int, str) if kind == "int-or-string" else _TYPES.get(kind, (object,))
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind not in ("boolean", "any")):
        raise ValueError(f"{path}: expected {kind}, found {value!r}")
    if isinstance(value, dict):
        for name, part in value.items():
            known = f"{path}.{name}"
            check_known(part, fields, known if known in fields or f"{path}.*" not in fields else f"{path}.*")
    elif isinstance(value, list):
        for part in value:
            check_known(part, fields, f"{path}[]")


def schema_of(definition: Path, version: str) -> dict[str, Any]:
    """Return the schema of a version of a CustomResourceDefinition."""
    spec = yaml.safe_load(definition.read_text(encoding="utf-8"))["spec"]
    (found,) = [entry for entry in spec["versions"] if entry["name"] == version]
    schema: dict[str, Any] = found["schema"]["openAPIV3Schema"]
    return schema


def main(folder: Path) -> None:
    """Check every manifest and write the fields in use."""
    fields: dict[str, dict[str, str]] = {}
    for path in sorted(MANIFESTS.glob("*.yaml")):
        manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
        kind = manifest["kind"]
        schema = schema_of(folder / f"ray.io_{kind.lower()}s.yaml", manifest["apiVersion"].partition("/")[2])
        found = dict(walk(manifest["spec"], schema["properties"]["spec"], "spec"))
        fields.setdefault(kind, {}).update(found)
        print(f"{path.name}: {len(found)} kinds of fields, all known")
    FIELDS.write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
