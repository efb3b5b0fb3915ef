"""Litmus tests on the running kernel, and their outcomes beside those that the model allows."""
