# Sourced by the other scripts: finds Python, makes the virtual environments and installs into them from PyPI.
# An environment is reused until pyproject.toml, the Python version or the wanted packages change.
#
# PYTHON=...              the interpreter to make environments with (default: the newest python3 >= 3.11 found)
# FALLOW_ENVIRONMENT=...  use this environment for Fallow itself as it is: nothing is checked or installed

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() {
    printf '%s\n' "$*" >&2
    exit 1
}

can_make_environments() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if can_make_environments "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    die "No Python >= 3.11 with its venv module was found (tried: ${PYTHON:-python3, python3.11 to python3.14})." \
        $'\nOn Debian: apt-get install python3 python3-venv'
}

# install_into FOLDER STAMP PIP_ARGUMENT...: make FOLDER an environment holding what pip is told to install.
# The stamp is written last, so an interrupted installation is taken up again by the next call.
install_into() {
    local folder=$top/$1 stamp=$top/$1/$2 python wanted name=$1
    shift 2
    python=$(find_python) || exit 1
    wanted=$("$python" --version; printf '%s\n' "$top" "$@"; cat "$top/pyproject.toml")
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    mkdir -p "$folder" "$top/.cache"
    (
        flock 9
        [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && exit 0
        printf 'Installing into %s (first time: a few minutes at most; log: %s/install.log)\n' "$name" "$name"
        "$folder/bin/python" -c 'import pip' 2>/dev/null || "$python" -m venv --clear "$folder" || exit 1
        set -o pipefail
        if ! "$folder/bin/python" -m pip install --disable-pip-version-check --progress-bar off "$@" 2>&1 |
            tee "$folder/install.log" |
            sed --unbuffered --quiet 's/^Collecting \([^ ]*\).*/  \1/p; s/^Installing collected.*/  ... unpacking/p'; then
            tail -n 15 "$folder/install.log" >&2
            die "Installing into $name failed; the lines above say why. It needs to reach PyPI. Run the same command to go on."
        fi
        printf '%s' "$wanted" >"$stamp"
    ) 9>>"$top/.cache/$name.lock" || exit 1
}

activate() {
    export VIRTUAL_ENV=$1 PATH="$1/bin:$PATH:/usr/sbin:/sbin" # Debian keeps mosquitto in /usr/sbin.
    unset PYTHONHOME PYTHONPATH
}

# use_fallow EXTRA: an environment with fallow[EXTRA], where EXTRA is demo or dev (which contains demo).
use_fallow() {
    if [ -z "${FALLOW_ENVIRONMENT:-}" ]; then
        install_into .venv "installed-$1" --editable "$top[$1]"
        FALLOW_ENVIRONMENT=$top/.venv
    fi
    export FALLOW_ENVIRONMENT
    activate "$FALLOW_ENVIRONMENT"
}
