"""Steps that change nothing: a run whose gradients stay exactly zero is stopped instead of finished."""

from __future__ import annotations

_MOST_IN_A_ROW = 100
_FEWEST_AFTER_A_RESUME = 3


class NothingLearnedError(RuntimeError):
    """Every gradient was zero: nothing in the data reaches what is to learn."""


class IdleSteps:
    """Counts steps whose gradient is exactly zero; single ones occur, such as a text-only batch in pretraining."""

    def __init__(self, first_step: int) -> None:
        """Count from `first_step` on; more than 0 after a resume."""
        self._first_step, self._in_a_row, self._has_learned = first_step, 0, False

    def add(self, step: int, grad_norm: float | None, *, is_last: bool) -> None:
        """Count a step.

        Args:
            step: its number.
            grad_norm: over all ranks; None where nothing was supervised.
            is_last: of the run.

        Raises:
            NothingLearnedError: a hundred in a row were zero, or all of a run.
        """
        if grad_norm is not None:
            self._in_a_row = 0 if grad_norm else self._in_a_row + 1
            self._has_learned = self._has_learned or bool(grad_norm)
        enough = 1 if self._first_step == 0 else _FEWEST_AFTER_A_RESUME
        whole_run = is_last and not self._has_learned and self._in_a_row >= enough
        if self._in_a_row >= _MOST_IN_A_ROW or whole_run:
            raise NothingLearnedError(
                f"the gradient was exactly 0 in the {self._in_a_row} steps up to step {step}, so nothing was learned. "
                "Look at the samples with `ray-llava inspect`: do they have what the stage trains on, images for the "
                "projector, answers that are supervised?"
            )
