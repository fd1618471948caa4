#!/usr/bin/env bash
# huggingface_hub 2.4.0: a download that is killed in the middle of a file starts this file from nought, and leaves its part behind.
#
# A good guess: the same call goes on where the killed one stopped, by a Range request from the `.incomplete` file. That is what
# earlier versions did, what the argument `resume_download` was deprecated for ("downloads always resume when possible"), and what
# still happens within one process when the connection breaks. Seen: each download writes to a temporary file with a name of its
# own, so the next process asks for the whole file again. The part of the killed one (here half a file, of real models many GB) stays
# in `blobs` for ever.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check huggingface_hub==2.4.0 2> /dev/null
cd "$folder"
seen=$(HF_HOME="$folder/home" "$folder/venv/bin/python" -W ignore -c '
import json, os, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

DATA, COMMIT = bytes(40_000_000), "a" * 40
half_sent, first = threading.Event(), [True]

class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        for name, value in (("ETag", chr(34) + "e" * 40 + chr(34)), ("X-Repo-Commit", COMMIT), ("Content-Length", len(DATA))):
            self.send_header(name, str(value))
        self.end_headers()

    def do_GET(self):
        if "/resolve/" not in self.path:
            self.send_error(404)
            return
        print("GET with Range:", self.headers.get("Range"), flush=True)
        self.do_HEAD()
        if first.pop() if first else False:
            self.wfile.write(DATA[: len(DATA) // 2])
            self.wfile.flush()
            half_sent.set()
            threading.Event().wait()
        self.wfile.write(DATA)

    def log_message(self, *_):
        pass

hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
hub.daemon_threads = True
threading.Thread(target=hub.serve_forever, daemon=True).start()
environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
call = [sys.executable, "-c", "from huggingface_hub import hf_hub_download; hf_hub_download(\"a/b\", \"model.safetensors\")"]
print(version("huggingface_hub"), flush=True)
killed = subprocess.Popen(call, env=environment)
half_sent.wait()
blobs = Path(os.environ["HF_HOME"], "hub/models--a--b/blobs")
while not any(path.stat().st_size >= 10_000_000 for path in blobs.glob("*.incomplete")):
    pass
killed.kill()
killed.wait()
subprocess.run(call, env=environment, check=True)
print("parts left behind:", len(list(blobs.glob("*.incomplete"))))
' 2> /dev/null)
echo "$seen"
[ "$seen" = '2.4.0
GET with Range: None
GET with Range: None
parts left behind: 1' ]
