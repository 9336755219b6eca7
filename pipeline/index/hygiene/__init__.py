"""What is odd in a set of samples: copies, outliers and broken texts, found in the columns of the index."""
