"""Ask an exported folder with transformers alone: run as a script in a process of its own, which imports none of ours.

Arguments: the folder, a folder with `questions.json` (and what it names), and the type to compute in. For each question
it writes `K.theirs.pt`: ids and pixels of the folder's own processor, and, with the pixels that training would have
used, the last logits and the answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

NUM_LOGITS = 16


def main(folder: str, work: Path, dtype: str) -> None:
    """Answer every question of `work`."""
    processor = open_processor(folder)
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    for number, question in enumerate(json.loads((work / "questions.json").read_text(encoding="utf-8"))):
        inputs = processor.apply_chat_template(
            question["messages"], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        found: dict[str, Any] = {"ids": inputs["input_ids"][0], "pixels": inputs.get("pixel_values")}
        tiles = torch.load(work / f"{number}.tiles.pt", weights_only=True)
        if found["pixels"] is not None:
            inputs["pixel_values"] = with_tiles(found["pixels"], tiles)
        with torch.no_grad():
            found["logits"] = model(**inputs).logits[0, -NUM_LOGITS:].float()
            new = model.generate(**inputs, max_new_tokens=question["max_new_tokens"], tokenizer=processor.tokenizer)
        found["answer"] = new[0, inputs["input_ids"].shape[1] :]
        torch.save(found, work / f"{number}.theirs.pt")
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    (work / "versions.json").write_text(json.dumps(versions), encoding="utf-8")


def with_tiles(pixels: torch.Tensor, tiles: list[torch.Tensor]) -> torch.Tensor:
    """Put the tiles of training in place of the processor's, where there are as many of the same size."""
    changed = pixels.clone()
    for image, own in enumerate(tiles):
        place = changed[image] if pixels.ndim == 5 else changed[image : image + 1]
        if place[: len(own)].shape == own.shape:
            place[: len(own)] = own
    return changed


def open_processor(folder: str) -> Any:
    """Open the folder's processor; where torchvision is missing, without the part for videos, which needs it."""
    try:
        return transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    except ImportError:
        own = json.loads((Path(folder) / "processor_config.json").read_text(encoding="utf-8"))
        if own.pop("processor_class") != "LlavaOnevisionProcessor":
            raise
    from transformers.models.llava_onevision import image_processing_pil_llava_onevision, processing_llava_onevision
    from transformers.processing_utils import ProcessorMixin

    class ImagesOnly(processing_llava_onevision.LlavaOnevisionProcessor):
        """The same without videos."""

        def __init__(self, image_processor: Any = None, tokenizer: Any = None, **fields: Any) -> None:
            for name, value in fields.items():
                setattr(self, name, value)
            self.image_token_id = tokenizer.convert_tokens_to_ids(fields["image_token"])
            self.video_token_id = tokenizer.convert_tokens_to_ids(fields["video_token"])
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=tokenizer.chat_template)

    images = image_processing_pil_llava_onevision.LlavaOnevisionImageProcessorPil.from_pretrained(folder)
    return ImagesOnly(images, transformers.AutoTokenizer.from_pretrained(folder), **own)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
