"""No code of ours runs what is hidden in data: pickles, remote model code, YAML tags, archives, shells."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN_MODULES = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "tarfile"}
SAFE_CALLS = {"cloudpickle.register_pickle_by_value"}
"""Says how a module of ours is sent; nothing is loaded."""
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "torch.export.load"}


def unsafe_uses(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of everything that is forbidden."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FORBIDDEN_MODULES:
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {entry.arg: ast.unparse(entry.value) for entry in node.keywords}
            from_forbidden = name.partition(".")[0] in FORBIDDEN_MODULES and name not in SAFE_CALLS
            if (
                from_forbidden
                or name in FORBIDDEN_CALLS
                or (name == "torch.load" and options.get("weights_only") != "True")
            ):
                yield node.lineno, name
            if options.get("trust_remote_code", "False") != "False":
                yield node.lineno, "trust_remote_code"
            if options.get("shell", "False") != "False":
                yield node.lineno, "shell"


@pytest.mark.parametrize("folder", ["model", "pipeline", "jobs"])
def test_package_uses_nothing_that_runs_code_from_data(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in unsafe_uses(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("pickle.loads(b)", "pickle.loads"),
        ("from joblib import load", "joblib"),
        ("torch.load(f)", "torch.load"),
        ("torch.load(f, weights_only=False)", "torch.load"),
        ("yaml.load(f, Loader=L)", "yaml.load"),
        ("subprocess.run(c, shell=True)", "shell"),
        ("AutoModel.from_pretrained(n, trust_remote_code=flag)", "trust_remote_code"),
    ],
)
def test_scan_finds_what_it_forbids(source: str, expected: str) -> None:
    assert list(unsafe_uses(source)) == [(1, expected)]


def test_scan_accepts_the_safe_forms() -> None:
    source = "torch.load(f, weights_only=True)\nyaml.safe_load(f)\nf(n, trust_remote_code=False)\nmodel.eval()"
    source += "\ntry:\n    pass\nexcept pickle.UnpicklingError:\n    pass"
    assert list(unsafe_uses(source)) == []
