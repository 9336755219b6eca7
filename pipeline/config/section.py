"""The base of every config section, and what a field says about resuming.

Every field carries a line with its unit and legal values, and says whether it may change when a run resumes
(`Fixed`: the run refuses; `Free`: may change).
"""

from __future__ import annotations

import enum

from pydantic import BaseModel, ConfigDict


class OnResume(enum.Enum):
    """What a resumed run does when a field differs from the value it was started with."""

    FIXED = "refuse"
    FREE = "allow"


Fixed = OnResume.FIXED
Free = OnResume.FREE


class Section(BaseModel):
    """Base of every config section: unknown keys are errors, values never change after validation.

    Numbers are finite, but for limits that may be lifted, whose fields say so.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )
