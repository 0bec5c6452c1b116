#!/usr/bin/env bash
# Prepares <root>/.venv: this project, editable, with the extras asked for, at the versions of uv.lock.
#
#   tools/setup.sh [demo] [dev] [admin]   prepares it, quietly if nothing is to be done; exit code 2 if it cannot
#   source tools/setup.sh          with $self set: defines $root, $venv and prepare_environment
#
# .venv belongs to this script, which makes it again where it is not what it should be. The last thing written is the
# stamp: it holds where, with what and from what the environment was made. One without a stamp was interrupted.

[[ ${BASH_SOURCE[0]} != "$0" ]] || self=$(readlink -f -- "$0")
root=${self%/*/*}
venv=$root/.venv
stamp=$venv/stamp

# prepare_environment [extra...]: has the environment made unless it is there; ends the calling script if it cannot be.
prepare_environment() {
    { is_usable "$@" && is_current; } || bash "$root/tools/setup.sh" "$@" || exit 2
}

# is_usable [extra...]: is there a whole environment, made here, whose interpreter is still the same, with the extras?
is_usable() {
    made_in='' made_with='' made_for='' made_from=''
    [[ -r $stamp ]] || return
    {
        IFS= read -r made_in
        IFS= read -r made_with
        IFS= read -r made_for
        IFS= read -r -d '' made_from
    } <"$stamp" || true
    [[ $made_in == "$root" && -x $venv/bin/python && $venv/bin/python -ef $made_with ]] || return
    local extra
    for extra in "$@"; do
        [[ " $made_for " == *" $extra "* ]] || return
    done
}

# is_current: was the environment that is_usable looked at made from what the project asks for now?
is_current() {
    read_pins
    [[ $made_from == "$pins" ]]
}

# read_pins: what an environment is made from, into $pins. Contents are compared because an upgrade may bring old dates.
read_pins() {
    local file text
    pins=''
    for file in pyproject.toml tools/constraints.txt; do
        IFS= read -r -d '' text <"$root/$file" || true
        pins+=$text
    done
}

# What follows is reached only where something is to be done.

say() {
    printf '%s\n' "$*" >&2
}

# die <message> <hint>
die() {
    say "setup: $1"
    say "  hint: $2"
    exit 2
}

# choose_extras [extra...]: the extras asked for and those that are there already, into $extras.
choose_extras() {
    local extra
    for extra in "$@"; do
        [[ $extra == demo || $extra == dev || $extra == admin ]] ||
            die "there is no extra called '$extra'" 'usage: tools/setup.sh [demo] [dev] [admin]'
    done
    extras=()
    for extra in demo dev admin; do
        [[ " $* $made_for " != *" $extra "* ]] || extras+=("$extra")
    done
}

is_writable() {
    [[ -w $root && (! -e $venv || -w $venv) ]]
}

# settle_for_what_is_there [extra...]: for a user who may not change the environment; ends the script either way.
settle_for_what_is_there() {
    if is_usable "$@"; then
        say "setup: $venv is older than the project and not writable; using it as it is"
        exit 0
    fi
    local owner
    owner=$(stat -c %U -- "$root" 2>/dev/null || echo root)
    [[ ! -r $stamp || -x $venv/bin/python ]] ||
        die "the Python of $venv (${made_with:-unknown}) is not there, or not for this user" \
            "remove $venv, and as $owner run: PATH=/usr/bin:/bin $root/tools/setup.sh${*:+ $*}"
    die "$venv has to be made, and $root is not writable" \
        "run once: sudo -u $owner $root/tools/setup.sh${*:+ $*}"
}

# take_lock: one setup at a time. The kernel frees a flock; where there is no flock, a directory has to do.
take_lock() {
    if command -v flock >/dev/null; then
        exec 9<"$root"
        flock -w 900 9 && return
    else
        until mkdir -- "$venv.lock" 2>/dev/null || ((SECONDS > 900)); do sleep 1; done
        ((SECONDS > 900)) || { trap 'rmdir -- "$venv.lock"' EXIT && return; }
    fi
    die 'another setup has been running for 15 minutes' "end it, remove $venv.lock if it is there, and try again"
}

# find_python: the first interpreter that is new enough, into $python.
find_python() {
    local name program='import os, sys; print(os.path.realpath(sys.executable)); sys.exit(sys.version_info < (3, 11))'
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        python=$("$name" -I -c "$program" 2>/dev/null) && return
    done
    die 'no Python 3.11 or newer was found' 'install one, for example: apt-get install python3 python3-venv'
}

install_with_uv() {
    UV_PROJECT_ENVIRONMENT=$venv uv sync --project "$root" --python "$python" --no-python-downloads \
        --frozen --compile-bytecode --quiet "${extras[@]/#/--extra=}"
}

install_with_pip() {
    local pip project=$root
    ((${#extras[@]} == 0)) || project+="[$(IFS=, && echo "${extras[*]}")]"
    make_venv_for_pip &&
        PIP_USER=0 "${pip[@]}" install --quiet --quiet --no-input --disable-pip-version-check --compile \
            --constraint "$root/tools/constraints.txt" --editable "$project"
}

# make_venv_for_pip: an empty environment, and the command that installs into it in the caller's $pip. Debian keeps
# ensurepip in a package of its own; a pip of 22.3 or newer can do without.
make_venv_for_pip() {
    local is_new_enough='import pip, sys; sys.exit([*map(int, pip.__version__.split(".")[:2])] < [22, 3])'
    if "$python" -I -c 'import ensurepip' 2>/dev/null; then
        pip=("$venv/bin/python" -I -m pip)
        "$python" -I -m venv --clear "$venv"
    elif "$python" -I -c "$is_new_enough" 2>/dev/null; then
        pip=("$python" -I -m pip --python "$venv/bin/python")
        "$python" -I -m venv --clear --without-pip "$venv"
    else
        die "$python has neither ensurepip nor pip 22.3" "apt-get install ${python##*/}-venv"
    fi
}

# install: with uv where it is there and works (it may not reach what pip was told to use), otherwise with pip.
install() {
    [[ -w ${HOME:-/nowhere} ]] || export UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1
    if command -v uv >/dev/null; then
        install_with_uv && return
        say 'setup: uv could not do it; trying pip'
    fi
    install_with_pip ||
        die 'the packages could not be installed' 'the reason stands above; once it is gone, run the same command again'
}

write_stamp() {
    printf '%s\n' "$root" "$python" "${extras[*]}" >"$stamp.new"
    printf '%s' "$pins" >>"$stamp.new"
    mv -- "$stamp.new" "$stamp"
}

# make_environment [extra...]: the whole of it, under the lock.
make_environment() {
    if is_usable "$@" && is_current; then return; fi # another setup was faster
    is_usable || { rm -rf -- "$venv" && made_for=''; }
    rm -f -- "$stamp"
    choose_extras "$@"
    read_pins
    find_python
    say "setup: preparing $venv (${python##*/}${extras[*]:+, with ${extras[*]}}) ..."
    install
    "$venv/bin/python" -I -m compileall -qq "$root"/{portal,worker,beat,tools,demo,benchmarks} || true
    write_stamp
    say "setup: ready after $SECONDS s"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    set -euo pipefail
    unset VIRTUAL_ENV PYTHONHOME PYTHONPATH PYTHONPYCACHEPREFIX PYTHONDONTWRITEBYTECODE
    umask 022
    exec >&2
    made_for='' choose_extras "$@"
    if is_usable "$@" && is_current; then exit 0; fi
    is_writable || settle_for_what_is_there "$@"
    take_lock
    make_environment "$@"
fi
