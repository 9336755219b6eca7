"""How much of the deciding code the tests notice: change one place at a time, and see whether a test fails.

Not to be mixed up with `tests.chaos.mutants`, which puts back known defects of peers in whole runs.
"""
