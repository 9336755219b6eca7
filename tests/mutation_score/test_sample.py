"""The tests notice most of a sample of changes to the deciding code; `make mutants` tries all of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.mutation_score.import_graph import ROOT
from tests.mutation_score.run import choose, list_changes
from tests.mutation_score.targets import LEFT_OUT, files_that_test, target_modules


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute or two on an idle machine
def test_nine_of_ten_changes_of_a_sample_are_noticed_or_excused() -> None:
    command = [sys.executable, "-m", "tests.mutation_score", "--in-all", "60", "--processes", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("60 of ")


def test_every_target_has_tests_and_changes() -> None:
    changes = list_changes(target_modules())
    assert all(changes.values())
    for module in target_modules():
        paths = files_that_test(module)
        assert paths, module
        assert [path for path in paths if not (ROOT / path).is_file()] == []
    assert LEFT_OUT.keys() <= changes.keys()


def test_choose_takes_the_same_changes_when_others_are_added() -> None:
    changes = list_changes(["pipeline.plan.packing", "pipeline.plan.epochs"])
    chosen = choose(changes, seed=3, in_all=9)
    taken = {one.identity for found in chosen.values() for one in found}
    assert len(taken) == 9
    fewer = {module: [one for one in found if one.identity in taken] for module, found in changes.items()}
    assert choose(fewer, seed=3, in_all=9) == chosen
    assert choose(changes, seed=4, in_all=9) != chosen
    assert {len(found) for found in choose(changes, seed=3, per_module=5).values()} == {5}
