"""Models' weights and what runs them: loading, SmolLM2, oneDNN, memory, GPU compilers."""
