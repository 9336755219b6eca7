"""The projector on disk: what projector pretraining produces and finetuning starts from, image newline included.

Tensors are stored as safetensors under the names of published LLaVA checkpoints (`model.mm_projector.0.weight`, ...).
Original `mm_projector.bin` files are read too, restricted to tensors.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.files.atomic import replacing
from model.files.checkpoint_files import read_pickled_tensors
from model.files.file_mode import follow_umask
from model.files.tower_layouts import current_names, misfits
from model.files.weight_files import read_shapes

PROJECTOR_FILE: Final = "mm_projector.safetensors"
"""File name used when a folder is given."""
_LEGACY_FILE: Final = "mm_projector.bin"
_PREFIX: Final = "model."
_PROJECTOR: Final = "mm_projector"
_NEWLINE: Final = "image_newline"
_TOWER: Final = r"vision_tower\.(?:towers\.\d+\.)?vision_tower\."
_DIGEST_KEY: Final = "ray_llava.sha256"
EMBEDDING_KEY: Final = "model.embed_tokens.weight"
"""Input embeddings, present in adapters trained with `<im_start>` and `<im_end>`."""


def projector_state(body: nn.Module) -> dict[str, Tensor]:
    """Return the weights of `mm_projector`, and `image_newline` if there is one.

    Args:
        body: a decoder body with vision modules.
    """
    names = (f"{_PROJECTOR}.", _NEWLINE)
    return {name: tensor for name, tensor in body.state_dict().items() if name.startswith(names)}


def write_projector(
    state: Mapping[str, Tensor],
    path: str | Path,
    row_ids: Sequence[int] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the projector's weights atomically and return the file's path.

    Args:
        state: whole tensors, named as `projector_state` does; the input embeddings may be among them.
        path: target file ending in `.safetensors`, or a folder, which then gets `mm_projector.safetensors`.
        row_ids: rows of the input embeddings to write: those of `<im_start>` and `<im_end>`.
        metadata: what the file is to say about itself, such as the parts it was trained between.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        target = target / PROJECTOR_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    tensors = {_PREFIX + name: tensor.detach().cpu() for name, tensor in state.items()}
    if EMBEDDING_KEY in tensors:
        tensors[EMBEDDING_KEY] = tensors[EMBEDDING_KEY][list(row_ids or ())]
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(target) as temporary:
        save_file(tensors, temporary, metadata=with_digest(tensors, metadata))
        follow_umask(temporary)
    return target


def with_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the metadata of a file of these tensors: what is given, and a digest of their content."""
    return {"format": "pt", **(metadata or {}), _DIGEST_KEY: _digest(tensors)}


def load_verified(path: str | Path) -> dict[str, Tensor]:
    """Load the tensors of a file and compare them with the digest it was written with; files of others have none.

    Raises:
        ValueError: the file is damaged, or they differ.
    """
    written = read_metadata(path).get(_DIGEST_KEY)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error
    if written is not None and written != _digest(tensors):
        raise ValueError(f"{path} is damaged: its tensors are not those that were written; copy it again")
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return what an adapter file says about itself; nothing for an original one.

    Raises:
        ValueError: the file is damaged.
    """
    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error


def read_adapter(path: str | Path) -> dict[str, Tensor]:
    """Read every tensor of an adapter file, or of the one inside a folder, onto the CPU.

    Raises:
        ValueError: there is no such file, or a pickle holds more than tensors.
    """
    source = _find_adapter(path)
    read_shapes(source)
    if source.suffix == ".safetensors":
        return load_verified(source)
    return read_pickled_tensors(source)


def check_projector(body: nn.Module, path: str | Path) -> None:
    """Compare an adapter's tensors with a decoder body as `load_projector` does, without reading a value.

    Raises:
        ValueError: as `load_projector`.
    """
    shapes = read_shapes(_find_adapter(path))
    found = projector_tensors({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    _match_projector(body, found, path)


def load_projector(body: nn.Module, path: str | Path) -> None:
    """Load an adapter's weights into a decoder body; every tensor must be there, fit, and be known.

    Only `image_newline` may be missing, as it is from original files, and keeps its value then. Weights of the vision
    tower that are in the file (position embeddings that were trained along) are loaded by name. Embeddings of
    `<im_start>` and `<im_end>` are left to `vision_tokens`.

    Raises:
        ValueError: the file is missing, or tensors are missing, unexpected or of another shape; all are named.
    """
    found, in_tower = _match_projector(body, projector_tensors(read_adapter(path)), path)
    if in_tower:
        _load_into_tower(body, in_tower, path)
    body.load_state_dict(found, strict=False)


def _find_adapter(path: str | Path) -> Path:
    """Return an adapter file, or the one inside a folder."""
    source = Path(path)
    if source.is_dir():
        candidates = [source / PROJECTOR_FILE, source / _LEGACY_FILE]
        source = next((file for file in candidates if file.is_file()), candidates[0])
    if not source.is_file():
        raise ValueError(f"projector file {source} does not exist; expected {PROJECTOR_FILE} or {_LEGACY_FILE}")
    return source


def _match_projector(
    body: nn.Module, found: dict[str, Tensor], path: str | Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split an adapter's tensors into those of the projector, which must be all of them, and those of the tower."""
    in_tower = {name: tensor for name, tensor in found.items() if re.match(_TOWER, name)}
    found = {name: tensor for name, tensor in found.items() if name not in in_tower}
    expected = {name: own for name, own in projector_state(body).items() if name in found or name != _NEWLINE}
    if problems := misfits(expected, found):
        kind = type(body.get_submodule(_PROJECTOR)).__name__
        raise ValueError(f"{path} does not fit the projector {kind}: " + "; ".join(problems))
    return found, in_tower


def _load_into_tower(body: Any, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy single tensors into the tower, which may be in a list, out of the body's own parameters."""
    tower: nn.Module | None = body.get_vision_tower()
    own = {} if tower is None else tower.state_dict()
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place, _, inner = name.removeprefix("vision_tower.").partition("vision_tower.")
        kind = "" if f"{place}vision_tower.{inner}" in own else "internvl_vision"
        renamed |= {f"{place}vision_tower.{new}": rows for new, rows in current_names({inner: tensor}, kind).items()}
    if problems := misfits({name: own[name] for name in renamed if name in own}, renamed):
        raise ValueError(f"{path} does not fit the vision tower: " + "; ".join(problems))
    if tower is not None:
        tower.load_state_dict(renamed, strict=False)


def projector_tensors(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pick the tensors of `projector_state` and of the tower, with everything before their names removed.

    Other tensors are left out only when they are the input embeddings, so that nothing trained is lost unnoticed.
    """
    picked: dict[str, Tensor] = {}
    for name, tensor in adapter.items():
        if name == EMBEDDING_KEY:
            continue
        match = re.fullmatch(rf"(?:.*?\.)?({_PROJECTOR}\..+|{_NEWLINE}|{_TOWER}.+)", name)
        picked[match[1] if match else name] = tensor
    return picked
