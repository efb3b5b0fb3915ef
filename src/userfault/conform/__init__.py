"""Model and kernel side by side: random sequences of operations, compared after each one, and shrunk."""
