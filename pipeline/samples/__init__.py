"""Samples: from the member bytes of a shard to token ids, labels and pixels."""
