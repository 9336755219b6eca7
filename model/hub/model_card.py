"""The README of an exported folder: what the model is, and how transformers runs it."""

from __future__ import annotations

from typing import Any

from model.hub.hf_classes import HfClass
from model.llava_arch import LlavaForCausalLM

_VERSIONS = "Read by transformers 5 and 4.57: the config has the fields of both."
_GEMMA = (
    "Read by transformers 5 only: 4.x multiplies image features by the root of the width, as it does embeddings of\n"
    "Gemma's tokens, and answers differently."
)
_INTERNVIT = "Read by transformers 5 only: 4.57 cannot run InternViT as the tower of this class."


def model_card(model: LlavaForCausalLM, kind: HfClass, language_model: str, size: int) -> str:
    """Return the README.

    Args:
        model: exportable as `kind`.
        kind: the class.
        language_model: its `model_type`.
        size: side of the square that an image or tile becomes, pixels.
    """
    tower: Any = model.get_vision_tower()
    versions = _GEMMA if language_model == "gemma" else _VERSIONS
    versions = _INTERNVIT if tower.config.model_type == "internvl_vision" else versions
    tiles = f", tiles chosen as `{model.config.image_aspect_ratio}`" if kind.has_tiles else ""
    what = "tile" if kind.has_tiles else "image"
    generation = model.generation_config
    # what ends answers with text instead of a token has to be spelled to be found
    stops = ", tokenizer=processor.tokenizer" if generation is not None and generation.stop_strings else ""
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
---

# LLaVA model

A `{language_model}` language model ({model.config.hidden_size} wide) that reads images through a
`{tower.config.model_type}` tower ({size} x {size} pixels, {tower.num_features_at(size)} tokens per
{what}, hidden state {tower.spec.select_layer}{tiles}) and a `{model.config.mm_projector_type}` projector, trained with
ray-llava.

```python
from transformers import AutoProcessor, {kind.architecture}

processor = AutoProcessor.from_pretrained(folder)
model = {kind.architecture}.from_pretrained(folder)
messages = [{{"role": "user", "content": [{{"type": "image", "image": image}}, {{"type": "text", "text": question}}]}}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
tokens = model.generate(**inputs, max_new_tokens=128{stops})[:, inputs["input_ids"].shape[1] :]
answer = processor.batch_decode(tokens, skip_special_tokens=True)[0]
```

{versions}
Give pictures as RGB. transformers drops transparency and clips 16-bit grey; training lays transparency over white and
keeps the upper 8 bits of 16.
"""
