"""A real GRUB boots what the evaluator says is its default entry, with the command line that it says."""

from __future__ import annotations

from pathlib import Path

from armvm.disk.detect import open_disk
from armvm.disk.files import MemoryFileSystem
from armvm.disk.filesystems import detect_content
from armvm.execution import ExecutionState
from armvm.image.contents import ImageContents
from armvm.spec.verdict import Verdict
from conftest import Armvm
from tools import grub_configs
from tools.boot_volumes import StandIn, audit
from tools.foreign_packages import foreign_package
from tools.installer import find_installer
from tools.plain_qemu import PLATFORMS, boot
from tools.tiny_guest import CMDLINE, DONE, tiny_initramfs

STUB = "search.fs_label system root hd0,gpt9\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
CONFIG = r"""
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
else
   set default="${saved_entry}"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
set timeout=0
set lost=1
set kept="a  b"
export kept
function words {
  set words="$#:$2"
  return 1
}
if words x 'y z' ; then set result=wrong; else set result=right; fi
if ! search --no-floppy --file --set=nowhere /not/there; then set missing=1; fi
for i in one two three; do
  if [ $i = two ]; then continue; fi
  list=$list$i,
done
while [ "$count" != "..." ]; do count=$count. ; done
export words result missing list count
set quoted="it's \"so\" \$5"
export quoted
menuentry 'First' $menuentry_id_option first { linux /boot/vmlinuz wrong=first
}
submenu 'More' $menuentry_id_option more {
  menuentry 'Other' $menuentry_id_option other { linux /boot/vmlinuz wrong=other
  }
  menuentry 'Chosen, by its id' --class x $menuentry_id_option 'chosen' {
    insmod gzio
    if [ x$grub_platform = xxen ]; then insmod xzio; fi
    set root='hd0,gpt1'
    search --no-floppy --label --set=root --hint-efi=hd0,gpt2 system
    linux ($root)/boot/${kernel} console=ttyAMA0 panic=-1 lost=$lost $kept "$kept" "words=$words" $result $missing \
      list=$list count=$count cpu=$grub_cpu env=$from_env at=$config_directory "quoted=$quoted" esc\ aped 1=$1
    initrd /boot/initrd.img
  }
}
"""


def test_grub_boots_the_default_that_we_tell(armvm: Armvm, tmp_path: Path) -> None:
    package = foreign_package("arm64", "grub-efi-arm64-bin", "grub-efi-arm64-unsigned")
    stub = tmp_path / "stub.cfg"
    stub.write_text(STUB)
    environment = grub_configs.grubenv(saved_entry="more>chosen", from_env="x=1", kernel="vmlinuz")
    files = {
        "boot/grub/grub.cfg": CONFIG.replace("export quoted", "export quoted kernel from_env").encode(),
        "boot/grub/grubenv": environment,
        "boot/vmlinuz": find_installer(ExecutionState.AARCH64).kernel.read_bytes(),
        "boot/initrd.img": tiny_initramfs(ExecutionState.AARCH64, tmp_path).read_bytes(),
    }
    for name, content in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    image = tmp_path / "image.img"
    built = armvm(
        *("build", "-o", image, "--efi", f"aarch64={package / 'usr/lib/grub/arm64-efi/monolithic/grubaa64.efi'}"),
        *("--esp-file", f"{stub}:/EFI/debian/grub.cfg", "--root", tmp_path / "tree", "--root-label", "system"),
    )
    assert built.returncode == 0, built.stderr
    with open_disk(image) as disk:
        root = ImageContents(disk).table.partitions[1]
        volume = StandIn(
            "partition 2", MemoryFileSystem(files, name="partition 2"), detect_content(root.slice(disk)), root
        )
        audited = audit(disk, volume)
        assert audited.judgement.verdict is Verdict.PASS, audited.judgement
        (entry,) = audited.chain.default_entries
    assert entry.title == "More > Chosen, by its id"
    assert entry.command_line is not None
    assert "env=x=1" in entry.command_line
    said = boot(PLATFORMS["edk2-64"], image, DONE)
    seen = said.split(f"{CMDLINE} ")[1].splitlines()[0].rstrip()
    assert seen.partition(" ")[2] == entry.command_line, said[-3000:]
