"""Benchmarks in the files that their authors publish: read as questions, asked with the prompts that others use."""
