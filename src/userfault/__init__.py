"""Linux userfaults and page moves: the rules as plain Python, and every interleaving of them explored."""

__version__ = "0.1.0"
