"""STEP: the training loop and what it needs: micro-batches, gradients, optimizer, snapshots."""
