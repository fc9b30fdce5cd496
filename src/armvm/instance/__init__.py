"""Kept machines: their folder, their definition, and the process that runs each."""
