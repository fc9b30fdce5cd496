"""Cloud Hypervisor as a backend: its command line, and a running one."""
