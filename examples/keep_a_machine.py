"""Keeps a machine with a snapshot to go back to: python examples/keep_a_machine.py IMAGE."""

import sys

import armvm


def main(image: str) -> None:
    """Boot once, keep that state, and come back to it in a second."""
    with armvm.Machine.create("example", image) as machine:
        machine.start()
        machine.expect(r"login:", timeout_seconds=300)
        machine.snapshot("booted")
        name = machine.attach_new_disk(64 << 20)
        print(f"{machine.name} has taken the disk {name}")
        machine.restore("booted")
        print("and is as it was before:", [disk.name for disk in machine.definition.machine.disks])
        machine.kill()
        print("its firmware knows", ", ".join(variable.name for variable in machine.variables()))


if __name__ == "__main__":
    main(sys.argv[1])
