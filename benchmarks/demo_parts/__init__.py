"""How the demo's small language model and vision tower were taught."""
