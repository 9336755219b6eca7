"""Conversion of what people have (annotation files, tables, downloads) into verified WebDataset shards."""
