"""Nested hosts: real hypervisors (KVM, Xen) on an ARM machine that QEMU emulates, for those who have no ARM hardware.

``recipe`` says what a host is made of; ``kvm`` and ``xen`` are the hosts; ``packages`` and ``initramfs`` build them,
``store`` keeps them, ``outer`` runs the emulated machine, ``agent`` is our end inside it and ``wire`` what both speak.
``up`` makes and snapshots a host, ``run`` resumes it and boots an image in it.
"""
