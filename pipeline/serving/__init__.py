"""A trained model behind an HTTP address, in the wire format of OpenAI's chat completions, on Ray Serve."""
