"""What answers: opened models, and the engine that writes their answers in one batch."""
