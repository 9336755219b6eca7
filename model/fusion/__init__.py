"""FUSION: image features spliced into text embeddings, packed or padded; and the tiles that images become."""
