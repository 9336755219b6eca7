"""Loading through transformers, which knows every older name of a tensor, with nothing left out in silence.

transformers fills what a checkpoint lacks with random values and passes over what it does not know, with a report in
the log; here both are clauses of an error.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from model.files.weight_files import Shapes

_MAX_NAMED: Final = 40
"""More clauses than this are counted; a wrong folder would give thousands."""


def load_strictly(
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    name: str | None,
    state: Mapping[str, Tensor] | None,
    *,
    may_lack: Collection[str] = (),
    may_add: Callable[[str], bool] = lambda _name: False,
    where: str,
    **options: Any,
) -> tuple[Any, list[str]]:
    """Make a model with the weights of a folder or hub id, or with `state` when there is no name.

    Args:
        model_class: of transformers, or derived from one.
        config: of the model.
        name: folder or hub id.
        state: tensors in place of a folder's.
        may_lack: tensors of the model that may be missing; the caller fills them.
        may_add: says of a tensor's name whether the model has a right not to know it.
        where: the weights' file or folder, for the message.
        options: of `from_pretrained`.

    Returns:
        The model, and which of `may_lack` are missing.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape; names them.
    """
    loader: Any = model_class
    with _without_report():
        model, info = loader.from_pretrained(
            name,
            config=config,
            state_dict=None if state is None else dict(state),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, all at once and by name
            **options,
        )
    missing: list[str] = sorted(info["missing_keys"])
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    problems = [f"missing {key} {_shape(own, key)}" for key in missing if key not in may_lack]
    problems += [f"unexpected {key}" for key in sorted(info["unexpected_keys"]) if not may_add(key)]
    problems += [
        f"{key} has shape {list(found)}, expected {list(expected)}"
        for key, found, expected in sorted(info["mismatched_keys"])
    ]
    if problems:
        more = len(problems) - _MAX_NAMED
        clauses = [*problems[:_MAX_NAMED], *([f"and {more} more"] if more > 0 else [])]
        raise ValueError(f"{where} does not fit {model_class.__name__}: " + "; ".join(clauses))
    return model, missing


def check_shapes(
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    shapes: Shapes,
    *,
    may_lack: Collection[str] = (),
    may_add: Callable[[str], bool] = lambda _name: False,
    where: str,
) -> None:
    """Compare names and shapes of a checkpoint with a model as `load_strictly` would, without a single value.

    Raises:
        ValueError: as `load_strictly`.
    """
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    load_strictly(model_class, config, None, state, may_lack=may_lack, may_add=may_add, where=where, device_map="meta")


def fill_neutrally(model: torch.nn.Module, names: Collection[str]) -> None:
    """Fill tensors that nothing needs: a layer of them returns what it is given, a norm keeps the scale."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name in names:
            own[name].fill_(1 if own[name].ndim == 1 and name.endswith("weight") else 0)


def _shape(own: Mapping[str, Tensor], name: str) -> list[int] | str:
    return list(own[name].shape) if name in own else ""


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep the report of names out of the log: what of it counts is in the error."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
