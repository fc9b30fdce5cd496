"""UEFI firmware of virtual machines: finding it, and its variable store."""
