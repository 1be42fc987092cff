"""Text in, excerpts out: corpora, where they are read from, and the bytes of tokens."""
