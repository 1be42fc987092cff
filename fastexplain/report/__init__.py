"""What the command line and others show, as plain data."""
