#!/usr/bin/env bash
# Builds the image where there is no container engine, and runs it as its user on a read-only root.
#
#     deploy/test_image.sh [IMAGE]     as root; needs Debian's buildah, podman, runc and debootstrap
#
# BASE=docker.io/library/python:3.11-slim builds on the official base. Without it a base is made from Debian's packages,
# once, in CACHE. With IMAGE nothing is built. What this machine's pip is told (mirrors, certificates, folders of wheels)
# is mounted for the build and does not stay in the image. Images stay in CACHE, where the next build finds its layers.
set -euo pipefail
cd "$(dirname "$0")/.."

CACHE=${CACHE:-/var/tmp/glm-infill-image}
TORCH=${TORCH:-cpu}
IMAGE=${1:-localhost/glm-infill:$TORCH}
PORT=${PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
NAME=glm-infill-$$
URL=http://127.0.0.1:$PORT
PODMAN=(podman --runtime runc --cgroup-manager cgroupfs)

mkdir -p "$CACHE"
work=$(mktemp -d)
cat > "$work/storage.conf" <<EOF
[storage]
driver = "overlay"
graphroot = "$CACHE/storage"
runroot = "$work/run"
EOF
export CONTAINERS_STORAGE_CONF=$work/storage.conf

clean() {
    "${PODMAN[@]}" rm --force --time 5 "$NAME" > /dev/null 2>&1 || true
    rm -rf "$work"
}
trap clean EXIT

say() { printf '%6ds  %s\n' "$SECONDS" "$*"; }
fail() { say "FAILED: $*"; "${PODMAN[@]}" logs "$NAME" 2>&1 | tail -20; exit 1; }

make_base() {
    BASE=localhost/python:3.11-debian
    buildah inspect --type image "$BASE" > /dev/null 2>&1 && return
    local root=$CACHE/rootfs c
    [ -e "$root.done" ] || {
        rm -rf "$root"
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" > "$CACHE/base.log"
        rm -f "$root/etc/resolv.conf" "$root"/var/cache/apt/archives/*.deb
        ln -sf /usr/bin/python3 "$root/usr/local/bin/python"
        touch "$root.done"
    }
    tar -C "$root" --exclude=./dev --exclude=./proc --exclude=./sys -cf "$work/base.tar" .
    c=$(buildah from scratch)
    buildah add --quiet "$c" "$work/base.tar" / > /dev/null
    buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd python3 "$c"
    buildah commit --quiet --rm "$c" "$BASE" > /dev/null
    say "base $BASE of Debian's packages"
}

build() {
    local options=() path
    { echo '[global]'; python3 -m pip config list | grep -v file: | sed -n "s/^global\.\([^=]*\)='\(.*\)'/\1 = \2/p"; } > "$work/pip.conf"
    for path in /etc/ssl/certs/ca-certificates.crt $(sed -n 's,.*= \(/.*\),\1,p' "$work/pip.conf"); do
        [ -e "$path" ] && options+=(--volume "$path:$path:ro")
    done
    options+=(--volume "$work/pip.conf:/etc/pip.conf:ro")
    [ -z "${TORCH_INDEX:-}" ] || options+=(--build-arg "TORCH_INDEX=$TORCH_INDEX")
    # Docker's format: OCI's knows no health check.
    buildah build --pull=never --isolation chroot --format docker --layers "${options[@]}" --build-arg "BASE=$BASE" \
        --build-arg "TORCH=$TORCH" --build-arg "REVISION=$(git rev-parse HEAD 2> /dev/null || echo unknown)" \
        --tag "$IMAGE" . > "$CACHE/build.log" 2>&1 || { tail -30 "$CACHE/build.log"; exit 1; }
    say "$IMAGE is built"
}

if [ $# -eq 0 ]; then
    if [ -n "${BASE:-}" ]; then buildah pull --quiet "$BASE" > /dev/null; else make_base; fi
    build
fi
buildah images --format '        {{.Name}}:{{.Tag}}  {{.Size}}' "$IMAGE"

# As an orchestrator would: no privileges, nothing to write to but /tmp, and the host's network for want of another.
"${PODMAN[@]}" run --detach --name "$NAME" --network host --read-only --read-only-tmpfs=false \
    --tmpfs /tmp:rw,exec,nosuid,nodev,size=256m --cap-drop ALL --security-opt no-new-privileges \
    --ulimit nofile=4096:4096 --ulimit nproc=4096:4096 \
    --env GLM_INFILL_HOST=127.0.0.1 --env GLM_INFILL_PORT="$PORT" "$IMAGE" > /dev/null 2> "$work/run.log" \
    || { cat "$work/run.log"; exit 1; }
began=$SECONDS
until "${PODMAN[@]}" healthcheck run "$NAME" > /dev/null 2>&1; do
    [ $((SECONDS - began)) -lt 120 ] || fail "not healthy in 120 s"
    [ "$("${PODMAN[@]}" inspect --format '{{.State.Running}}' "$NAME")" = true ] || fail "it ended"
    sleep 0.5
done
say "the HEALTHCHECK command says healthy"

inside() { "${PODMAN[@]}" exec "$NAME" "$@"; }
[ "$(inside id -u)" = 10001 ] || fail "runs as user $(inside id -u)"
inside python - <<'EOF' || fail "the processes or the files are not as they should be"
import os
from pathlib import Path

status = Path("/proc/1/status").read_text()
assert "Uid:\t10001\t10001\t10001\t10001" in status, status
assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status, status
# What stands where a process runs might be imported.
place = os.readlink("/proc/1/cwd")
assert place not in ("/tmp", "/var/tmp") and not os.stat(place).st_mode & 0o022, place
for root in (place, "/", "/opt/glm-infill", "/usr", "/etc", "/var/tmp"):
    try:
        Path(root, "probe").touch()
    except OSError:
        continue
    raise SystemExit(f"{root} can be written")
# Even on a root that is not read-only, nothing that is run belongs to the user who runs it.
loose = [path for path in Path("/opt/glm-infill").rglob("*") if path.lstat().st_uid != 0 or (
    not path.is_symlink() and path.lstat().st_mode & 0o022)]
assert not loose, loose[:5]
EOF
say "user 10001 without capabilities; nothing but /tmp can be written"

python3 - "$URL" <<'EOF' || fail "wrong answers"
import json
import sys
import urllib.request

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

def ask(route, body):
    request = urllib.request.Request(f"{sys.argv[1]}/v1/{route}", json.dumps(body).encode(), {"content-type": "application/json"})
    return json.load(opener.open(request, timeout=60))

filled = ask("infill", {"text": "And [MASK] said unto him, What is thy [MASK]?", "max_tokens": 8})
print("        ", filled["results"][0]["text"])
assert filled["results"][0]["text"] == "And he said unto him, What is thy name?"
scored = ask("score", {"text": "床前明月[MASK]", "spans": [["光"], ["山"], ["酒"]]})
print("        ", [round(result["logprob"], 3) for result in scored["results"]])
assert scored["best"] == 0
card = json.load(opener.open(f"{sys.argv[1]}/v1/models"))["data"][0]
print("        ", card["id"], {name: card.get(name) for name in ("quant", "kernels") if name in card})
EOF
say "filled and scored"
inside glm-infill doctor | grep -E "kernels (int8|variants)"
[[ $(inside cat /proc/1/cmdline | tr '\0' ' ') == */glm-infill\ serve\ --quant\ int8\  ]] || fail "process 1 is not the server"
inside python - <<'EOF' || fail "a rank that was killed is not back"
import http.client
import os
import signal
import time
from pathlib import Path

def children(state):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        fields = path.read_text().rpartition(")")[2].split()
        if fields[1] == "1" and fields[0] in state:
            found.append(int(path.parent.name))
    return found

def status():
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["GLM_INFILL_PORT"]), timeout=5)
    connection.request("GET", "/ready")
    return connection.getresponse().status

(rank,) = children("RSD")
os.kill(rank, signal.SIGKILL)
deadline = time.monotonic() + 60
while children("RSD") in ([], [rank]) or status() != 200:
    assert time.monotonic() < deadline
    time.sleep(0.1)
assert not children("Z")
EOF
say "a killed rank is back, and process 1 has collected the old one"
"${PODMAN[@]}" logs "$NAME" 2>&1 | grep '"event": *"ready"' > /dev/null || fail "no log line that says ready"

"${PODMAN[@]}" kill --signal TERM "$NAME" > /dev/null
code=$(timeout 40 "${PODMAN[@]}" wait "$NAME") || fail "did not end after SIGTERM"
[ "$code" = 0 ] || fail "ended with $code after SIGTERM"
say "SIGTERM: drained, exit 0"
