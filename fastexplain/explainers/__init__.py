"""Ways to explain a neuron, a module each."""
