"""The one pass of a corpus through a subject: loop, summaries, batch sizes, prefetch."""
