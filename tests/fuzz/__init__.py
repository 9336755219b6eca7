"""Fuzzing of what reads untrusted bytes: `python -m tests.fuzz` in full, a twentieth of it as tests."""
