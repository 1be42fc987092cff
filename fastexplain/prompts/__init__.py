"""Prompts of the explainer and the simulator, with their few-shot examples."""
