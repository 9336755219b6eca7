"""From a config to the model and back: its parts joined, what of it learns, the folder it becomes."""
