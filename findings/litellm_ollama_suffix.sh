#!/usr/bin/env bash
# litellm 1.110.2, provider ollama: the suffix of a fill lands in `options`, and the JSON body has no content type.
#
# A good guess: `text_completion(model="ollama/…", prompt=…, suffix=…)` becomes Ollama's own request for text between two sides,
# `{"prompt", "suffix", …}` with `Content-Type: application/json`. Seen: the body has no `suffix` at its top; it stands among the
# `options`, where Ollama's documentation has none, so that a server by that documentation answers as if there were nothing behind
# the cursor, with 200. The request has no Content-Type header at all: a server that asks for JSON refuses it with 415.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check litellm==1.110.2 2> /dev/null
cd "$folder"
seen=$(LITELLM_LOCAL_MODEL_COST_MAP=True "$folder/venv/bin/python" -W ignore -c '
import json, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version

import litellm

class Recorder(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/api/generate":
            print("content type:", self.headers.get("content-type"))
            print("suffix:", body.get("suffix"), "options:", json.dumps(body["options"]))
        answer = json.dumps({"model": "x", "response": "is", "done": True, "prompt_eval_count": 1, "eval_count": 1}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass

server = HTTPServer(("127.0.0.1", 0), Recorder)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(version("litellm"))
litellm.text_completion(model="ollama/x", prompt="The sea ", suffix=" blue.", api_base=f"http://127.0.0.1:{server.server_port}")
' 2> /dev/null)
echo "$seen"
[ "$seen" = '1.110.2
content type: None
suffix: None options: {"suffix": " blue."}' ]
