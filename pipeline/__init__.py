"""The data-and-training pipeline: shards -> index -> plan -> rank-steps -> loss. Imports `model`, never `jobs`."""
