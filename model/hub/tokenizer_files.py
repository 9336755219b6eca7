"""A tokenizer in the one form that every reader of a folder understands the same way: its tokenizer.json.

transformers builds many tokenizers from vocabulary and merges, by rules of the class in tokenizer_config.json, of
options there (`legacy`, `add_prefix_space`) and of the `model_type` in the config.json of the same folder. Another
release, or the same files in another folder, can give other ids. `read_tokenizer` has this done once; training uses the
result, and `write_tokenizer` writes exactly that result.
"""

import copy
import json
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from model.hub.sentencepiece_files import check_sentencepiece, open_sentencepiece, order_merges

_ROLES: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OF_THIS_MACHINE: Final = ("backend", "is_local", "local_files_only", "files_loaded")


def read_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder or hub id, never running code from it.

    Raises:
        ValueError: there is none, it has no fast form, or it puts more than BOS before a text or EOS after it.
    """
    file = Path(name) / "tokenizer.model"
    only_sentencepiece = file.is_file() and not (Path(name) / "tokenizer.json").is_file()
    try:
        tokenizer = _class_for(name, only_sentencepiece).from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as error:
        why = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name}: no tokenizer found ({why}); expected tokenizer.json, or tokenizer.model of SentencePiece, with "
            "tokenizer_config.json"
        ) from error
    made = portable(tokenizer)
    reference = open_sentencepiece(file) if only_sentencepiece else None
    if reference is not None:
        order_merges(made, reference)
        if getattr(tokenizer, "add_prefix_space", True) is not False:
            check_sentencepiece(made, reference, file)
    return made


def portable(tokenizer: PreTrainedTokenizerBase, *, adds_bos: bool | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer that gives the same ids and is written to a folder without loss.

    Truncation, padding and an EOS after the text, which a tokenizer.json can ask for, are left out: the sample's length
    and the template decide about these.

    Args:
        tokenizer: with a fast backend.
        adds_bos: whether BOS goes before a text; None keeps what the tokenizer does.

    Raises:
        ValueError: it is not backed by the `tokenizers` library, or puts something else around a text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        raise ValueError(
            f"tokenizer {type(tokenizer).__name__} has no fast backend; convert it to a tokenizer.json first"
        )
    if adds_bos is None:
        adds_bos = _adds_bos(tokenizer)
    if backend.truncation is not None or backend.padding is not None:
        backend = copy.deepcopy(backend)
        backend.no_truncation()
        backend.no_padding()
    names = {name: str(text) for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
    further = {name: text for name, text in names.items() if name not in _ROLES}
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,  # which is copied
        **{name: text for name, text in names.items() if name in _ROLES},
        **({"extra_special_tokens": further} if further else {}),
        add_bos_token=adds_bos,
        add_eos_token=False,
        add_prefix_space=_adds_prefix_space(backend.pre_tokenizer),
        clean_up_tokenization_spaces=False,  # would change answers when they are spelled
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=tokenizer.chat_template,
    )
    made.name_or_path = tokenizer.name_or_path
    return made


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write a tokenizer of `portable`; releases of transformers from 4.5 on read the same ids from it."""
    tokenizer.save_pretrained(str(folder))
    path = Path(folder) / "tokenizer_config.json"
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    values = {name: value for name, value in values.items() if name not in _OF_THIS_MACHINE}
    values |= {
        "tokenizer_class": "PreTrainedTokenizerFast",  # what builds nothing and is known everywhere
        "add_bos_token": bool(tokenizer.add_bos_token),
        "add_eos_token": False,
    }
    path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def largest_token_id(tokenizer: PreTrainedTokenizerBase) -> tuple[int, str]:
    """Return the largest id that a tokenizer can give, and its token."""
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return largest, token


def _class_for(folder: str, only_sentencepiece: bool) -> Any:
    """Return what reads a folder's tokenizer.

    For some model types (Mistral, Phi 3) `AutoTokenizer` reads a tokenizer.model without the space that SentencePiece
    puts before a text; Llama's class, which their tokenizer_config.json names, does not lose it.
    """
    config = Path(folder) / "tokenizer_config.json"
    if only_sentencepiece and config.is_file():
        named = str(json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class", ""))
        if named.removesuffix("Fast") == "LlamaTokenizer":
            return LlamaTokenizer
    return AutoTokenizer


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether BOS is put before a text.

    Raises:
        ValueError: something else is put around it, which no part of the pipeline would repeat.
    """
    bare: list[int] = tokenizer("a", add_special_tokens=False).input_ids
    whole: list[int] = tokenizer("a").input_ids
    start = next((idx for idx in range(len(whole)) if whole[idx : idx + len(bare)] == bare), 0)
    before, after = whole[:start], whole[start + len(bare) :]
    if before not in ([], [tokenizer.bos_token_id]) or after not in ([], [tokenizer.eos_token_id]):
        raise ValueError(
            f"the tokenizer puts {tokenizer.convert_ids_to_tokens(before)} before and "
            f"{tokenizer.convert_ids_to_tokens(after)} after every text; expected at most its bos_token "
            f"({tokenizer.bos_token!r}) and its eos_token ({tokenizer.eos_token!r}); correct the post_processor in "
            "tokenizer.json"
        )
    return bool(before)


def _adds_prefix_space(pre_tokenizer: Any) -> bool:
    """Whether a byte-level pre-tokenizer adds a space: transformers 4 sets it to what tokenizer_config.json says."""
    return bool(getattr(pre_tokenizer, "add_prefix_space", False))
