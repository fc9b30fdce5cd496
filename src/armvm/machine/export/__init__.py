"""A machine described for other hypervisors and tools: pure functions from the Machine value to text."""
