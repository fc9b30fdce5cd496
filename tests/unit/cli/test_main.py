"""The door of the command line: help, exit codes, nothing imported that is not needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from armvm.cli.main import VERBS
from conftest import Armvm


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(armvm: Armvm, verb: str) -> None:
    result = armvm(verb, "--help")
    assert result.returncode == 0
    assert f"  armvm {verb} " in result.stdout or f"  armvm {verb}\n" in result.stdout
    assert "--verbose" in result.stdout
    assert "--quiet" in result.stdout


def test_help_names_every_verb(armvm: Armvm) -> None:
    help_text = armvm("--help").stdout
    assert all(f"    {verb} " in help_text for verb in VERBS)


@pytest.mark.parametrize("arguments", ["", "nonsense", "check", "check --nonsense x", "spec show x", "build -o x"])
def test_misuse_exits_2(armvm: Armvm, arguments: str) -> None:
    result = armvm(*arguments.split())
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_the_way_in_imports_no_verb() -> None:
    code = (
        "import sys, armvm.cli.main\n"
        "try: armvm.cli.main.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted(m for m in sys.modules if m.startswith(('armvm', 'rich', 'tomllib', 'json', 'zstandard'))),"
        " file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    allowed = {"armvm", "armvm.api", "armvm.cli", "armvm.cli.main", "armvm.cli.options"}
    allowed |= {"armvm.errors", "armvm.printable", "armvm.version"}
    assert set(eval(result.stderr)) <= allowed  # noqa: S307 - a list that we just printed


def test_a_fault_of_ours_exits_70_with_the_traceback_for_the_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    import armvm.cli.spec
    from armvm.cli.main import main

    def broken(_options: object) -> int:
        raise RuntimeError("boom\x1b[2J")

    monkeypatch.setattr(armvm.cli.spec, "execute", broken)
    assert main(["spec", "list"]) == 70


def test_an_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    import armvm.cli.spec
    from armvm.cli.main import main

    def interrupted(_options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(armvm.cli.spec, "execute", interrupted)
    assert main(["spec", "list"]) == 130


def test_a_reader_that_has_had_enough_is_no_error(tmp_path: Path) -> None:
    command = f"set -o pipefail; {sys.executable} -m armvm spec list --json | head -c 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_spec_shows_and_lists(armvm: Armvm) -> None:
    shown = armvm("spec", "show", "image.gpt")
    assert shown.returncode == 0
    assert "remedy:" in shown.stdout
    listed = armvm("spec", "list", "--profile", "vmspec-2.0", "--topic", "guest").stdout.splitlines()
    assert any(line.startswith("guest.acpi") for line in listed)
    assert all(line.startswith("guest.") for line in listed)


def test_the_library_offers_what_the_contract_names() -> None:
    code = (
        "import armvm; armvm.Machine; armvm.requirements(); armvm.open_image; armvm.check_image; "
        "print(len(armvm.requirements()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(result.stdout) >= 40
