"""The run directory: files, statistics, tables, splits, and the database."""
