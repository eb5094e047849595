"""Door: the command line. Translation only."""
