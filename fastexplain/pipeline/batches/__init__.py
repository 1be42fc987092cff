"""Explaining through a batch API, or through files for an offline engine."""
