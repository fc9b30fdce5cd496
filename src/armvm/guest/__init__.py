"""The guest in the image: how it boots, what its kernel and initial RAM disk carry, and what it takes for granted."""
