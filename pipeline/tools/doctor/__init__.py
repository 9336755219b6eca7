"""Checks before a run: what would stop or slow it, found in seconds instead of hours later.

Every check returns findings and never raises for what it looks for; `jobs.doctor` shows them.
"""
