"""WebDataset shards as bytes: where they are, a strict tar reader, the writer."""
