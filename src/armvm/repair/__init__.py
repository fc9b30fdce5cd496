"""Edits that make an image conform: planned and judged first, then written so that none is ever half done."""
