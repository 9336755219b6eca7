"""LLaVA-style vision-language models: towers, projectors, fusion, backbones, weights. Knows torch and transformers only."""
