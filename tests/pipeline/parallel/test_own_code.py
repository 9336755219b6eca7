import sys
from pathlib import Path

import pytest

from pipeline.parallel.own_code import MixedCodeError, OwnCode, _digest, check_same_code, find_code, own_code


def write_tree(root: Path, **files: str) -> Path:
    for name, text in {"jobs/__init__": "", "model/__init__": "", "pipeline/__init__": "", **files}.items():
        (root / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.py").write_text(text)
    return root


def test_digest_tells_content_and_place_of_every_file(tmp_path: Path) -> None:
    first = _digest(write_tree(tmp_path / "a", **{"pipeline/x": "one", "pipeline/y": "two"}))
    assert _digest(write_tree(tmp_path / "b", **{"pipeline/x": "one", "pipeline/y": "two"})) == first
    assert _digest(write_tree(tmp_path / "c", **{"pipeline/x": "two", "pipeline/y": "one"})) != first
    assert _digest(write_tree(tmp_path / "d", **{"pipeline/z": "one", "pipeline/y": "two"})) != first
    assert _digest(write_tree(tmp_path / "e", **{"pipeline/x": "onetwo", "pipeline/y": ""})) != first
    (tmp_path / "a" / "tests").mkdir()
    (tmp_path / "a" / "tests" / "x.py").write_text("not part of the product")
    assert _digest(tmp_path / "a") == first


def test_find_code_is_what_an_import_would_take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_code() == own_code()
    write_tree(tmp_path)
    loaded = sys.modules.pop("pipeline")
    try:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "path", [str(tmp_path), *sys.path])
            patched.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "Editable" not in repr(finder)])
            found = find_code()
    finally:
        sys.modules["pipeline"] = loaded
    assert found == OwnCode(str(tmp_path), _digest(tmp_path))
    with pytest.raises(MixedCodeError, match=rf"node n1 would run the ray-llava in {tmp_path} \(digest .*install the"):
        check_same_code(found, own_code(), "node n1")


def test_process_without_the_product_is_refused() -> None:
    with pytest.raises(MixedCodeError, match="node n2 has no ray-llava; install the same version"):
        check_same_code(OwnCode("", ""), own_code(), "node n2")


def test_same_code_in_another_place_is_accepted() -> None:
    check_same_code(own_code()._replace(root="/elsewhere"), own_code(), "node n3")
