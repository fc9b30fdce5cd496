"""The Xen backend: domains of a host that runs Xen, made and unmade through xl in its control domain."""
