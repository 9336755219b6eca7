"""The sandbox for suspicious samples, with a child that does what suspicious samples make it do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.launch.crashes import sandbox
from pipeline.launch.crashes.sandbox import find_crashers

HANGS_OVER_17 = """
shift 3  # -m, the module, the config
printf 'ready\\n'
for id in "$@"; do
    printf "$id\\n"
    [ "$id" = 17 ] && exec sleep 60
done
printf 'done\\n'
"""
SAYS_MUCH = """
head -c 300000 /dev/zero | tr '\\0' x >&2
printf 'ready\\n17\\ndone\\n'
"""
CANNOT_START = """
echo 'no such tokenizer' >&2
exit 1
"""


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Let a shell script take the place of the interpreter that runs the child."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\n" + request.param)
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(sandbox, "SAMPLE_TIMEOUT_S", 0.5)


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize("child", [HANGS_OVER_17], indirect=True)
def test_sample_that_hangs_is_named_however_its_last_words_arrive() -> None:
    verdicts = find_crashers(Path("CONFIG"), [3, 17, 5])
    assert list(verdicts) == [17]
    assert "was killed, or ran for more than" in verdicts[17]


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize("child", [SAYS_MUCH], indirect=True)
def test_sample_over_which_much_is_said_is_not_blamed() -> None:
    assert find_crashers(Path("CONFIG"), [17]) == {}


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize("child", [CANNOT_START], indirect=True)
def test_child_that_cannot_start_is_an_error_with_what_it_printed() -> None:
    with pytest.raises(RuntimeError, match="did not start: no such tokenizer"):
        find_crashers(Path("CONFIG"), [17])
