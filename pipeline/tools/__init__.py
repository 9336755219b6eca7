"""What a person uses around training: convert, inspect, estimate, doctor, evaluation, demo."""
