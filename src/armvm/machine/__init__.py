"""Machines as values, and the backends that run them."""
