"""Looking at data before and after training: what is in the shards, and what exactly the model gets."""
