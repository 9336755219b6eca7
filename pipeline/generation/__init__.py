"""From conversations and images to answers: the one place that asks a model, in batches."""
