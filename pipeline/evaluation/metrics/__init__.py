"""Metrics under their published names and rules: pure functions of questions, references and answers."""
