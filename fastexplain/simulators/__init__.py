"""Ways to predict activations from an explanation, and how their answers become values."""
