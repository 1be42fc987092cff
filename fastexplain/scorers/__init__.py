"""Ways to score an explanation, a module each."""
