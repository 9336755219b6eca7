"""WebDataset shards: strict tar reading, the Parquet index over them, and the writer."""
