"""Reports as text and JSON: Report in, str out."""
