"""One file per family of language models that can become a LLaVA model, and their registry."""
