"""LLaVA-style vision-language models: towers, projectors, fusion, backbones, weights. Needs torch and transformers."""
