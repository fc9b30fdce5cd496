"""``python -m armvm``."""

from armvm.cli.main import entry

if __name__ == "__main__":
    entry()
