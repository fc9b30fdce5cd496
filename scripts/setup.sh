# Sourced by ./quickstart and ./test: installs what is missing, and says what it installs. May be run again at any time.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1m==>\033[0m %s\n' "$*" | if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9;]*m//g'; fi; }
die() { printf 'error: %s\n' "$*" >&2; exit 69; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
    die "this needs root or sudo: $*"
  fi
}

has_package() { [ "$(dpkg-query -W -f='${Status}' "$1" 2>/dev/null)" = "install ok installed" ]; }

known_package() { [[ $(apt-cache policy "$1" 2>/dev/null) =~ Candidate:\ [^\(] ]]; }

apt_updated=
apt_update() {
  [ -n "$apt_updated" ] && return
  say "apt-get update"
  # A mirror that is just being changed answers with lists that do not fit: ask again, then go on with what there is.
  local _
  for _ in 1 2 3; do
    if as_root apt-get update -q=2 -o Acquire::Retries=3; then break; fi
  done
  apt_updated=yes
}

# need_packages PACKAGE…: on Debian and Ubuntu, installs those that are missing. Elsewhere `armvm doctor` tells.
need_packages() {
  command -v apt-get >/dev/null || return 0
  local missing=() package
  for package in "$@"; do has_package "$package" || missing+=("$package"); done
  [ ${#missing[@]} = 0 ] && return
  apt_update
  say "installing system packages: ${missing[*]}"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q=2 -y --no-install-recommends "${missing[@]}" >/dev/null
}

# find_python: the newest interpreter that is new enough and can make a virtual environment.
find_python() {
  local python
  for python in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  return 1
}

# need_armvm [EXTRA]: .venv with armvm installed from this tree, anew only when what it is made from has changed.
need_armvm() {
  local extra=${1:-} wanted stamp python requirements
  if command -v apt-get >/dev/null && ! find_python >/dev/null; then need_packages python3 python3-venv; fi
  python=$(find_python) || die "Python 3.11 or newer with venv is needed"
  stamp=.venv/.armvm-${extra:-plain}
  wanted=$(cat pyproject.toml hatch_build.py $(find efi guest -type f | LC_ALL=C sort) | cksum)
  if [ -x .venv/bin/armvm ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
  [ -x .venv/bin/python ] || { say "making .venv with $($python --version)"; "$python" -m venv .venv; }
  say "installing armvm${extra:+[$extra]} and what it is built with into .venv"
  # The build requirements go into .venv too: the EFI programs are built with them again when their source changes.
  # (An assignment of its own: a failure inside the arguments of another command would not end this script.)
  requirements=$(.venv/bin/python - "$extra" <<'PYTHON'
import sys, tomllib

with open("pyproject.toml", "rb") as file:
    data = tomllib.load(file)
extras = data["project"]["optional-dependencies"]


def of_extra(name):
    for requirement in extras[name]:
        if requirement.startswith("armvm["):  # extras of ours, which are on no index yet
            for own in requirement.removeprefix("armvm[").removesuffix("]").split(","):
                yield from of_extra(own.strip())
        else:
            yield requirement


wanted = ["editables", *data["build-system"]["requires"], *data["project"]["dependencies"]]
wanted += of_extra(sys.argv[1]) if sys.argv[1] else []
print(*(requirement.replace(" ", "") for requirement in wanted))
PYTHON
  )
  # shellcheck disable=SC2086
  .venv/bin/python -m pip install --quiet --disable-pip-version-check $requirements
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
  echo "$wanted" >"$stamp"
}

# need_installer ARCH: the Debian installer's network boot files; sets $installer_kernel and $installer_initrd, or fails
# where this machine's package archive has none.
need_installer() {
  local architecture=$1 release package folder
  command -v apt-get >/dev/null || return 1
  for release in 12 13 14; do
    package=debian-installer-$release-netboot-$architecture
    if ! has_package "$package" && ! known_package "$package"; then
      apt_update
      known_package "$package" || continue
    fi
    need_packages "$package"
    folder=/usr/lib/debian-installer/images/$release/$architecture/text/debian-installer/$architecture
    installer_initrd=$folder/initrd.gz
    for installer_kernel in "$folder/linux" "$folder/vmlinuz"; do
      [ -f "$installer_kernel" ] && return 0
    done
  done
  return 1
}

# need_guest_kernel ARCH METAPACKAGE: a mainline Linux of another architecture as a package file, in the user's cache;
# sets $guest_kernel. It is fetched with an apt root of its own: the machine's lists and architectures stay as they are.
need_guest_kernel() {
  local architecture=$1 metapackage=$2 root package
  command -v apt-get >/dev/null || return 1
  root=${XDG_CACHE_HOME:-$HOME/.cache}/armvm/packages/$architecture
  mkdir -p "$root/state/lists/partial" "$root/cache/archives/partial"
  guest_kernel=$(find "$root" -maxdepth 1 -name 'linux-image-[0-9]*.deb' | sort -V | tail -n 1)
  [ -z "$guest_kernel" ] || return 0
  touch "$root/status"
  cat >"$root/apt.conf" <<CONF
APT::Architecture "$architecture";
APT::Architectures {"$architecture";};
Dir::State "$root/state";
Dir::State::status "$root/status";
Dir::Cache "$root/cache";
APT::Sandbox::User "root";
CONF
  say "fetching $metapackage for $architecture into $root"
  local _
  for _ in 1 2 3; do
    if APT_CONFIG=$root/apt.conf apt-get update -q=2 -o Acquire::Retries=3 2>/dev/null; then break; fi
  done
  package=$(APT_CONFIG=$root/apt.conf apt-cache depends "$metapackage" 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
  [ -n "$package" ] || return 1
  (cd "$root" && APT_CONFIG=$root/apt.conf apt-get download -q=2 "$package" >/dev/null 2>&1) || return 1
  guest_kernel=$(find "$root" -maxdepth 1 -name 'linux-image-[0-9]*.deb' | sort -V | tail -n 1)
  [ -n "$guest_kernel" ]
}
