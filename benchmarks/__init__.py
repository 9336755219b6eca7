"""Benchmarks, and the code that taught the demo's parts. Not installed: `python -m benchmarks.NAME` in a checkout."""
