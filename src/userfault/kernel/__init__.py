"""The running kernel, typed. No policy."""
