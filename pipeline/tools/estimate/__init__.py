"""What a run will need before anything of it runs: memory per rank and time, from configs and the plan alone."""
