"""``armvm spec``: the requirements, in words, with the remedy."""

from __future__ import annotations

import argparse
import json
import textwrap

from armvm.cli.options import common_options
from armvm.cli.terminal import stdout_style
from armvm.spec.catalogue import DEFAULT_PROFILE, PROFILES, Requirement, Topic, requirement, requirements_of

DESCRIPTION = "List the requirements of the specification, or explain one."
EXAMPLES = """  armvm spec list
  armvm spec list --profile vmspec-2.0 --topic image
  armvm spec show image.removable-path"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list",
        help="one line for each requirement",
        description="List the requirements of a profile, one line each.",
        epilog="example:\n  armvm spec list --profile vmspec-2.0",
        parents=[common_options()],
    )
    listing.add_argument("--profile", choices=PROFILES, default=DEFAULT_PROFILE, help="default: %(default)s")
    listing.add_argument("--topic", choices=[topic.value for topic in Topic], help="only these requirements")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(action=_list)
    showing = actions.add_parser(
        "show",
        help="one requirement whole",
        description="Explain one requirement: what it asks, why, how strongly, and what to do.",
        epilog="example:\n  armvm spec show image.gpt",
        parents=[common_options()],
    )
    showing.add_argument("id", metavar="ID", help="for example image.gpt")
    showing.add_argument("--json", action="store_true", help="as JSON")
    showing.set_defaults(action=_show)


def execute(options: argparse.Namespace) -> int:
    """Carry it out."""
    code: int = options.action(options)
    return code


def _list(options: argparse.Namespace) -> int:
    topics = [Topic(options.topic)] if options.topic else []
    chosen = requirements_of(options.profile, *topics)
    if options.json:
        print(json.dumps([_as_json(entry) for entry in chosen], indent=2))
        return 0
    style = stdout_style()
    width = max(len(entry.id) for entry in chosen)
    for entry in chosen:
        clause = entry.clauses[options.profile]
        print(f"{style.bold(f'{entry.id:<{width}}')}  {clause.level.value:<6}  {entry.title}")
    return 0


def _show(options: argparse.Namespace) -> int:
    entry = requirement(options.id)
    if options.json:
        print(json.dumps(_as_json(entry), indent=2))
        return 0
    style = stdout_style()
    print(f"{style.bold(entry.id)}: {entry.title}\n")
    for profile, clause in entry.clauses.items():
        print(f"  {profile}: {clause.level.value}, section “{clause.section}”")
    if entry.stands_on:
        print(f"  stands on: {entry.stands_on}")
    print(f"\n{textwrap.fill(entry.explanation, 100)}\n")
    print(textwrap.fill(entry.remedy, 100, initial_indent="remedy: ", subsequent_indent="        "))
    if entry.unchecked:
        print(textwrap.fill(entry.unchecked, 100, initial_indent="not checked yet: ", subsequent_indent="        "))
    return 0


def _as_json(entry: Requirement) -> dict[str, object]:
    return {
        "id": entry.id,
        "topic": entry.topic.value,
        "title": entry.title,
        "explanation": entry.explanation,
        "remedy": entry.remedy,
        "profiles": {
            profile: {"level": clause.level.value, "section": clause.section}
            for profile, clause in entry.clauses.items()
        },
        "stands_on": entry.stands_on,
        "unchecked": entry.unchecked,
    }
