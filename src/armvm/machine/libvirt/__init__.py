"""libvirt as a backend: the domain XML of a machine, a running domain, and domains of others read and judged."""
