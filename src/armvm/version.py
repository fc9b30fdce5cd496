"""The version of armvm."""

__version__ = "0.1.0"
