"""Disks as layers of bytes: containers, partition tables, file systems."""
