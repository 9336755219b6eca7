"""From a conversation to token ids and labels: templates, rendering, tokenization."""
