# shellcheck shell=sh
# shellcheck disable=SC2034  # PYTHON, TREE and RUN are for who sources this
# Sourced by tests/run, contrib/demo/run and bench/run: packages, a Python environment, a user.
# Sets PYTHON (of the environment), TREE (what the user can read) and RUN (words before a command).

HERE=$(cd "$(dirname "$0")/../${UP:-}" && pwd)
KEEP=${UDI_TEST_DIR:-/var/tmp/rootless_udi-test}
USER_NAME=${UDI_TEST_USER:-udi-test}

say() { printf '%s\n' "== $*" >&2; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# packages NAME...: install what is missing, with apt.
packages() {
    missing=
    for package in "$@"; do
        case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
            *' installed') ;;
            *) missing="$missing $package" ;;
        esac
    done
    [ -z "$missing" ] && return
    say "installing$missing"
    # Another apt may be at work (unattended upgrades): wait for it. A download may break once.
    patient="-o DPkg::Lock::Timeout=900 -o Acquire::Retries=3"
    # Service starts are nobody's wish here.
    # shellcheck disable=SC2086
    as_root apt-get $patient update -qq
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get $patient install -y -qq --no-install-recommends $missing >/dev/null
}

# environment EXTRAS [NAME]: a virtual environment with the package's dependencies, under root's or
# the caller's folder, made of the system's own Python so that every user can run it. With NAME one
# of that name in which the package itself stays, as the tree is now.
environment() {
    if [ "$(id -u)" = 0 ]; then
        # A minimal root has no useradd.
        packages passwd
        id "$USER_NAME" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$USER_NAME"
        mkdir -p "$KEEP"
        VENV=$KEEP/venv${2:+/$2}
        TREE=$KEEP/tree
        rm -rf "$TREE"
        mkdir -p "$TREE"
        # What git knows and what is new; the user may not be able to reach the checkout itself.
        (cd "$HERE" && git -c safe.directory='*' ls-files -z --cached --others --exclude-standard |
            tar --null --ignore-failed-read -T - -cf - 2>/dev/null) | tar -xf - -C "$TREE"
        chown -R "$USER_NAME:" "$TREE"
        HOME_DIR=$(getent passwd "$USER_NAME" | cut -d: -f6)
        RUN="setpriv --reuid=$USER_NAME --regid=$USER_NAME --init-groups env -i HOME=$HOME_DIR
            USER=$USER_NAME LANG=C.UTF-8 TERM=${TERM:-dumb} CI=${CI:-}
            UDI_MUST_HAVE=${UDI_MUST_HAVE:-} UDI_PICTURES=${UDI_PICTURES:-} UDI_DOCS=${UDI_DOCS:-}
            HYPOTHESIS_STORAGE_DIRECTORY=/tmp/udi-hypothesis
            PATH=$VENV/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    else
        VENV=$HERE/.venv${2:+/$2}
        TREE=$HERE
        RUN="env PATH=$VENV/bin:$PATH:/usr/sbin:/sbin"
    fi
    [ -x "$VENV/bin/python3" ] || /usr/bin/python3 -m venv "$VENV"
    PYTHON=$VENV/bin/python3
    wanted="$HERE/pyproject.toml $1"
    stamp=$(cat "$HERE/pyproject.toml" "$HERE/tests/setup.sh" | cksum | tr ' ' -)-$1
    [ $# = 1 ] || stamp=$stamp-$(cd "$TREE" && find -L rootless_udi bin -name __pycache__ -prune -o -type f \
        -exec cat {} + | cksum | tr ' ' -)
    if [ "$(cat "$VENV/stamp" 2>/dev/null)" != "$stamp" ]; then
        say "installing Python packages ($wanted)"
        "$PYTHON" -m pip install -q --disable-pip-version-check --upgrade pip setuptools wheel
        (cd "$TREE" && "$PYTHON" -m pip install -q --disable-pip-version-check ".[$1]")
        [ $# = 2 ] || "$PYTHON" -m pip uninstall -q -y rootless_udi
        # What the tests of installing install, without a network.
        case $1 in test*) (
            cd "$TREE" && "$PYTHON" -m pip download -q --disable-pip-version-check -d "$VENV/wheels" . pip setuptools
            rm -f "$VENV"/wheels/rootless_udi-*
        ) ;; esac
        # What the build left in the tree, compiled modules among it, is the user's too.
        [ "$(id -u)" != 0 ] || chown -R "$USER_NAME:" "$TREE"
        printf '%s' "$stamp" >"$VENV/stamp"
    fi
}

# usable_fuse: what udev does on a host with fuse3; a container or a bare VM may have no udev.
usable_fuse() {
    if [ -c /dev/fuse ] && [ "$(stat -c %a /dev/fuse)" != 666 ]; then
        as_root chmod 0666 /dev/fuse
    fi
}
