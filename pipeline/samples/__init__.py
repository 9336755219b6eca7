"""Samples, one at a time and pure: from the member bytes of a shard to token ids, labels and pixels."""
