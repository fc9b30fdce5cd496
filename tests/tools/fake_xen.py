"""Stand-ins for xl and xenstore-watch: a Xen whose domain does what a test says, one state file at a time.

The folder holds ``running`` (the domain's name, while it is there), ``reason`` (once it is down), ``calls`` (what xl
was told, one line each), ``typed`` (what came in on the console) and ``says`` (what the domain says when it starts).
"""

from __future__ import annotations

import os
import select
import threading
import tty
from contextlib import suppress
from pathlib import Path

_XL = r"""#!/bin/sh
D={folder}
echo "$@" >>"$D/calls"
case $1 in
create)
  if [ -e "$D/refuse" ]; then
    printf '%s\n' "libxl: warning: x" "libxl: error: no memory" "more" >&2
    exit 3
  fi
  cp "$4" "$D/config"
  rm -f "$D/reason"
  sed -n 's/^name = "\(.*\)"/\1/p' "$4" >"$D/running"
  ;;
domid) echo 1 ;;
unpause) touch "$D/unpaused" ;;
list)
  [ "$(cat "$D/running" 2>/dev/null)" = "$3" ] || {{ echo "$3 is an invalid domain identifier" >&2; exit 1; }}
  echo "Name ID Mem VCPUs State Time(s) UUID Reason-Code Security Label"
  if [ -e "$D/reason" ]; then state=---s-- why=$(cat "$D/reason"); else state=-b---- why=-; fi
  echo "$3 1 512 1 $state 0.5 00000000-0000-0000-0000-000000000000 $why -"
  ;;
destroy) rm -f "$D/running" ;;
block-attach | block-detach | network-attach | network-detach)
  [ ! -e "$D/refuse-$1" ] || {{ echo "libxl: error: the guest does not let go" >&2; exit 1; }}
  ;;
esac
"""
_READ = r"""#!/bin/sh
[ "$1" = /local/domain/1/console/tty ] && cat {folder}/tty
"""
_WATCH = r"""#!/bin/sh
echo "$1"
exec tail -n +1 -f {folder}/releases
"""


def install_fake_xen(folder: Path) -> str:
    """Put the programs into ``folder/bin``; what PATH is to be."""
    programs = folder / "bin"
    programs.mkdir()
    for name in ("says", "typed", "calls", "releases"):
        (folder / name).touch()
    for name, text in (("xl", _XL), ("xenstore-watch", _WATCH), ("xenstore-read", _READ)):
        path = programs / name
        path.write_text(text.format(folder=folder))
        path.chmod(0o755)
    ours, its = os.openpty()
    tty.setraw(its)
    (folder / "tty").write_text(os.ttyname(its))
    threading.Thread(target=_console, args=(folder, ours, its), daemon=True).start()
    return f"{programs}:/usr/bin:/bin"


def _console(folder: Path, ours: int, _kept_open: int) -> None:
    """The domain's end of its console, until the folder is gone."""
    while folder.exists():
        if select.select([ours], [], [], 0.02)[0]:
            with (folder / "typed").open("ab") as file:
                file.write(os.read(ours, 4096))
        with suppress(FileNotFoundError):
            (folder / "unpaused").unlink()
            os.write(ours, (folder / "says").read_bytes())


def bring_down(folder: Path, reason: str) -> None:
    """The domain goes down, and xenstore says that one has."""
    (folder / "reason").write_text(reason)
    with (folder / "releases").open("a") as file:
        file.write("@releaseDomain\n")
