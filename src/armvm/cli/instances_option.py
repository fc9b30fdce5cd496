"""The option of verbs that change or replace an image: what becomes of the instances that stand on it."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_instances_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declare it."""
    parser.add_argument(
        "--ignore-instances", action="store_true", help="even if kept instances stand on the image, and are lost by it"
    )


def require_no_instances(image: Path, options: argparse.Namespace, *, what: str) -> None:
    """Raise UsageError when instances stand on ``image``, unless the option says that this does not matter.

    ``what`` is to happen to it: replaced, repaired in place.
    """
    if options.ignore_instances or not image.exists():
        return
    from armvm.instance import dependants

    dependants.require_none(
        image, what=what, hint="armvm vm list --image names them; --ignore-instances goes ahead all the same"
    )
