# A user manager of systemd, on a machine that may not have been booted with systemd, and that shares nothing with one that was:
# namespaces and a control group of its own, and a /run of its own that says that systemd has booted.
set -eu
echo $$ > "$CGROUP/cgroup.procs"
exec unshare --mount --pid --fork --kill-child --cgroup --mount-proc sh -euc '
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -p /run/systemd/system /run/user
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    # It logs to the console, if there is one.
    [ ! -e /dev/console ] || mount --bind "$S/console" /dev/console
    # Not in the place of this shell: as process 1, it would take itself for the manager of the system.
    env -i PATH="$PATH" HOME="$S" XDG_RUNTIME_DIR=/run/user SYSTEMD_UNIT_PATH="$S/units" SYSTEMD_LOG_TARGET=console \
        "$MANAGER" --user --unit="$UNIT"
    echo "systemd has ended"'
