"""Portable images: facts, checks, building."""
