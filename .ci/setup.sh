#!/usr/bin/env bash
# What `make setup` does: .venv with everything in it, and a Vulkan renderer that works. Run again, it only checks.
#
# PYTHON=/path/to/python chooses the interpreter. System packages are installed as root or with password-less sudo;
# where neither is possible the exact command is printed and the script stops.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv
STAMP=$VENV/.setup-stamp
CONSTRAINTS=.ci/constraints-cpu.txt

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: error: %s\n' "$1" >&2
    shift
    [ $# = 0 ] || printf '    %s\n' "$@" >&2
    exit 1
}

# Runs one shell command as root, or prints it and stops.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        say "running: $1"
        sh -c "$1"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        say "running with sudo: $1"
        sudo -n sh -c "$1"
    else
        fail "system packages are missing and this user may not install them; run this, then make setup again:" \
            "sudo sh -c \"$1\""
    fi
}

supported_python() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

# Prints the first Python 3.10-3.12 found; $PYTHON, if set, is the only candidate.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10 python}; do
        if supported_python "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.10, 3.11 or 3.12 found${PYTHON:+ at $PYTHON}." \
        "Debian 12, Ubuntu 22.04 and 24.04 have one: sudo apt-get install python3 python3-venv" \
        "elsewhere install one of these versions and run: make setup PYTHON=/path/to/python3.12"
}

make_venv() {
    if [ -x $VENV/bin/python ] && supported_python $VENV/bin/python && $VENV/bin/python -m pip --version >/dev/null 2>&1; then
        return
    fi
    local python version
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        command -v apt-get >/dev/null || fail "$python cannot make virtual environments: install its venv and ensurepip modules"
        as_root "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends python$version-venv"
    fi
    say "making $VENV with $python ($version)"
    "$python" -m venv --clear $VENV
}

has_nvidia_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }

# Installs only when what is to be installed has changed since the last time.
install_packages() {
    local options=() wanted
    if ! has_nvidia_gpu; then
        options=(-c $CONSTRAINTS)
    fi
    wanted=$({ cat pyproject.toml $CONSTRAINTS; echo "${options[*]-}"; pwd; } | sha256sum)
    if [ -f $STAMP ] && [ "$(cat $STAMP)" = "$wanted" ]; then
        say "Python packages are up to date"
        return
    fi
    say "installing Python packages (about 2 GB on disk; more with CUDA)"
    $VENV/bin/python -m pip install --disable-pip-version-check ${options[@]+"${options[@]}"} -e '.[dev]' |
        sed '/^Requirement already satisfied/d'
    echo "$wanted" >$STAMP
}

# What the renderer needs from Debian or Ubuntu, as one command. Debian 12's own Mesa is too old: its backports have a
# new one, from whatever mirror this machine's apt already uses.
renderer_command() {
    local install="DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends"
    local libraries="libvulkan1 libgl1 libglib2.0-0"
    local update="apt-get update -q"
    if [ "$1" != bookworm ]; then
        echo "$update && $install mesa-vulkan-drivers $libraries"
        return
    fi
    if ! apt_sources | grep ' bookworm-backports$' >/dev/null; then
        update="echo '$(backports_source)' > /etc/apt/sources.list.d/bookworm-backports.list && $update"
    fi
    echo "$update && $install $libraries && $install -t bookworm-backports mesa-vulkan-drivers"
}

# Lines of "URI suite" for every package source of this machine, in either of apt's formats; needs no network.
apt_sources() {
    apt-get update --print-uris | sed -nE "s#^'([^']*)/dists/([^']*)/InRelease'.*#\1 \2#p"
}

# The source line for bookworm-backports: mirror and keyring are those that this machine's apt uses for bookworm.
backports_source() {
    local uri keyring
    uri=$(apt_sources | awk '$2 == "bookworm" || $2 == "stable" { uri = uri ? uri : $1 } END { print uri }')
    [ -n "$uri" ] || fail "apt has no source for bookworm; add one and one for bookworm-backports, then run make setup again"
    keyring=$(source_files | xargs -r grep -lF "$uri" |
        xargs -r sed -nE 's/^Signed-By: *(\/.*)/\1/Ip; s/^deb .*signed-by=([^] ]+).*/\1/Ip' | sed -n 1p) || keyring=
    echo "deb ${keyring:+[signed-by=$keyring] }$uri bookworm-backports main"
}

# Where apt reads its sources from.
source_files() {
    local SOURCELIST= SOURCEPARTS=
    eval "$(apt-config shell SOURCELIST Dir::Etc::sourcelist/f SOURCEPARTS Dir::Etc::sourceparts/d)"
    find "$SOURCELIST" "$SOURCEPARTS" -maxdepth 1 -type f 2>/dev/null
    true
}

# ManiSkill imports a package that looks for the git program; a checkout from an archive may come without it.
check_git() {
    command -v git >/dev/null && return
    command -v apt-get >/dev/null || fail "install git and run make setup again"
    as_root "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends git"
}

check_renderer() {
    local device command
    if device=$($VENV/bin/python -m par_agent.simulation.renderer_probe 2>&1); then
        say "renderer: $device"
        return
    fi
    say "no usable renderer ($(tail -n 1 <<<"$device")); Mesa's software Vulkan driver, 24.3 or newer, is one"
    command -v apt-get >/dev/null || fail "install Mesa's lavapipe Vulkan driver, 24.3 or newer, and run make setup again"
    command=$(renderer_command "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")")
    as_root "$command"
    device=$($VENV/bin/python -m par_agent.simulation.renderer_probe 2>&1) ||
        fail "there is still no usable renderer:" "$device" "see: $VENV/bin/par-agent doctor"
    say "renderer: $device"
}

main() {
    exec 9<"${BASH_SOURCE[0]}" && flock 9 # two makes at once: the second waits
    make_venv
    install_packages
    check_git
    check_renderer
    say "done"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    main
fi
