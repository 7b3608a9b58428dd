# Sourced by the scripts here: `ensure_venv EXTRAS` makes .venv at the repository's root and installs into it.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "no Python 3.11 or newer with venv was found: install one" >&2
    return 1
}

ensure_venv() {
    local extras="$1" stamp python
    stamp="$extras $(cat pyproject.toml constraints.txt | cksum)"
    if [ ! -x .venv/bin/python ]; then
        python="$(find_python)" || exit 1
        "$python" -m venv .venv || exit 1
    fi
    if ! grep -qxF "$stamp" .venv/fastsample-installed 2>/dev/null; then
        echo "installing into .venv (once; a few minutes)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]" || exit 1
        echo "$stamp" >>.venv/fastsample-installed
    fi
}
