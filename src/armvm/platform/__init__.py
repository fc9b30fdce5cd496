"""Judging a platform: what the probes saw from inside a VM, against the specification."""
