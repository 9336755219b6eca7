"""The commands of ray-llava: one thin module per verb, wiring `pipeline` and `model` together."""
