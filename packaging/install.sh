#!/bin/sh
# Install the Fieldfare agent where there is no Debian package: a virtual environment, a user and a systemd unit.
set -eu

prefix=/opt/fieldfare-agent
state=/var/lib/fieldfare-agent
units=/etc/systemd/system
programs=/usr/local/bin
user=fieldfare
python=python3
package=fieldfare
dry=no
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

usage() {
    cat <<EOF
usage: install.sh [options]

  --dry-run         print what would be done, and do nothing
  --package SPEC    what pip installs: a version such as fieldfare==0.1.0, a wheel or a folder (default: $package)
  --python PROGRAM  Python 3.11 to 3.13 (default: $python)
  --prefix DIR      of the virtual environment (default: $prefix)
  --state DIR       the agent's folder (default: $state)
  --user NAME       that the agent runs as; made if it is missing (default: $user)
  --programs DIR    where the command edge-agent is linked (default: $programs)
  --units DIR       where the systemd unit goes (default: $units)

example: sh install.sh --dry-run --package ./fieldfare-0.1.0-py3-none-any.whl
EOF
}

fail() {
    echo "install.sh: $1" >&2
    exit "${2:-1}"
}

do_it() {
    if [ "$dry" = yes ]; then echo "would run: $*"; else "$@"; fi
}

while [ $# -gt 0 ]; do
    case "$1" in
    --dry-run) dry=yes ;;
    --help | -h) usage && exit 0 ;;
    --package | --python | --prefix | --state | --user | --programs | --units)
        [ $# -ge 2 ] || fail "$1 needs a value; see --help" 2
        case "$1" in
        --package) package=$2 ;;
        --python) python=$2 ;;
        --prefix) prefix=$2 ;;
        --state) state=$2 ;;
        --user) user=$2 ;;
        --programs) programs=$2 ;;
        --units) units=$2 ;;
        esac
        shift
        ;;
    *) fail "no option $1; see --help" 2 ;;
    esac
    shift
done

[ -f "$here/systemd/fieldfare-agent.service" ] || fail "$here/systemd/fieldfare-agent.service is missing; run install.sh from its own folder"
command -v "$python" >/dev/null || fail "$python is not installed; name another with --python"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || fail "$python is $("$python" -V 2>&1); Fieldfare needs Python 3.11 to 3.13"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv; install it (on Debian: apt install python3-venv)"
[ "$dry" = yes ] || [ "$(id -u)" -eq 0 ] || fail "run it as root (the agent itself will not be), or with --dry-run"

if ! id "$user" >/dev/null 2>&1; then
    if command -v useradd >/dev/null; then
        do_it useradd --system --user-group --home-dir "$state" --no-create-home --shell /usr/sbin/nologin "$user"
    else
        do_it adduser -S -D -H -h "$state" -s /sbin/nologin "$user" # BusyBox
    fi
fi
group=$(id -gn "$user" 2>/dev/null || echo "$user")

do_it "$python" -m venv "$prefix"
do_it "$prefix/bin/python" -m pip install --quiet --disable-pip-version-check "$package"
do_it "$prefix/bin/python" -m compileall -q "$prefix/lib"
do_it install -d -m 0700 -o "$user" -g "$group" "$state"
do_it install -d -m 0755 "$programs"
do_it ln -sf "$prefix/bin/edge-agent" "$programs/edge-agent"

unit="$units/fieldfare-agent.service"
if [ -d "$units" ]; then
    if [ "$dry" = yes ]; then
        echo "would write: $unit"
    else
        sed -e "s|/usr/bin/edge-agent|$prefix/bin/edge-agent|" -e "s|/var/lib/fieldfare-agent|$state|" \
            -e "s|^User=.*|User=$user|" -e "s|^Group=.*|Group=$group|" \
            -e "s|^StateDirectory=.*|ReadWritePaths=$state|" -e "/^StateDirectoryMode=/d" \
            "$here/systemd/fieldfare-agent.service" >"$unit"
    fi
    if [ -d /run/systemd/system ]; then
        do_it systemctl daemon-reload
        do_it systemctl enable fieldfare-agent.service
    fi
    begin="systemctl start fieldfare-agent"
else
    echo "no systemd here ($units is missing): let your supervisor start the agent as $user"
    begin="edge-agent run --state $state"
fi

echo "enrol this device:  sudo -u $user $prefix/bin/edge-agent enrol --state $state --device NAME --url URL --ca ca.crt --token-file FILE"
echo "then start it:      $begin"
