"""Root trees of Linux distributions, made into portable images: Debian by mmdebstrap, every other from its archive."""
