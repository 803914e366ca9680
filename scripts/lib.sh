# shellcheck shell=bash
# What the scripts share. Sourced, never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Where cargo puts what it builds.
target_dir() {
    cargo metadata --manifest-path "$root/Cargo.toml" --no-deps --offline --format-version 1 2>/dev/null |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# Polls a command until it succeeds: wait_for SECONDS WHAT COMMAND...
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        if ((SECONDS >= deadline)); then
            printf 'gave up waiting for %s\n' "$what" >&2
            return 1
        fi
        sleep 0.05
    done
}

# UDP ports in use, from the kernel's own tables.
used_udp_ports() {
    local file line
    for file in /proc/net/udp /proc/net/udp6; do
        [[ -r $file ]] || continue
        while read -r line; do
            if [[ $line =~ ^[0-9]+:\ [0-9A-F]+:([0-9A-F]{4}) ]]; then
                echo $((16#${BASH_REMATCH[1]}))
            fi
        done <"$file"
    done
}

# A UDP port that nobody uses now, and that this script has not given out: free_port VARIABLE
given_ports=" "
free_port() {
    local used candidate
    used=" $(used_udp_ports | tr '\n' ' ') "
    while :; do
        # Below the range from which the kernel gives ports to whoever asks for none in particular.
        candidate=$((20000 + RANDOM % 12000))
        [[ $used$given_ports == *" $candidate "* ]] || break
    done
    given_ports+="$candidate "
    printf -v "$1" "%s" "$candidate"
}

# Whether a quorumfs is mounted on exactly this path.
is_mounted() {
    awk -v at="$1" '$5 == at { for (i = 7; i < NF; i++) if ($i == "-" && $(i + 1) ~ /^fuse/) found = 1 } END { exit !found }' \
        /proc/self/mountinfo
}

# Ends a process that this script has started: stop PID SECONDS. First in peace, then not.
stop() {
    local pid=$1 deadline=$((SECONDS + $2))
    kill -TERM "$pid" 2>/dev/null || return 0
    while kill -0 "$pid" 2>/dev/null; do
        if ((SECONDS >= deadline)); then
            kill -KILL "$pid" 2>/dev/null || true
            break
        fi
        sleep 0.05
    done
    wait "$pid" 2>/dev/null || true
}
