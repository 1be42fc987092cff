"""The subject: a model with its neurons in view."""
