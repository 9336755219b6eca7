"""Whether an exported folder does in transformers what the model it was made of does here."""
