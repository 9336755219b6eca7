"""Fuzz of meaning: annotations in every dialect from a known truth, converted, read back, and compared with it."""
