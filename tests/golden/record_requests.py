"""Records what true clients send: a proxy before a running server, `record_requests.py PORT URL OUT.json NAME`.

Run with the project's environment, the demo being served at URL. Ended by a signal, it puts each different request
into OUT.json, with the status of its answer, under the client's NAME. `clients.json` was made so:

- "lm_eval", lm_eval 0.4.13, in tests/golden/lm_eval:
  lm_eval --model local-completions --model_args model=glm-demo,base_url=PROXY/v1/completions,max_length=512
  --batch_size 8 --include_path . --tasks glm_choices,glm_blanks,glm_generate,glm_perplexity
- "lm_eval strings": the same with ,tokenized_requests=False and --tasks glm_choices,glm_generate
- "lm_eval gguf": lm_eval --model gguf --model_args base_url=PROXY --include_path . --tasks glm_choices,glm_generate
- "llama.vim", a1c8e6e, in Vim 9.0: vim -Nu NONE -S tests/golden/llama_vim.vim, with LLAMA_VIM its folder and
  ENDPOINT=PROXY/infill
- "llama.vim in Neovim", a1c8e6e, in Neovim 0.11.4: nvim --headless --clean -S tests/golden/editors/screen.lua, with
  PLUGIN=llama_vim, LLAMA_VIM its folder and ENDPOINT=PROXY
- "minuet codestral" and "minuet openai_fim_compatible", minuet-ai.nvim 479487c: the same with PLUGIN=minuet, MINUET its
  folder and PROVIDER=codestral or openai_fim_compatible
- "cmp-ai codestral", cmp-ai 996c765 with nvim-cmp a1d5048 and plenary.nvim b9fd522: the same with PLUGIN=cmp_ai and
  CMP_AI, NVIM_CMP and PLENARY their folders
- "Mistral's and Ollama's JavaScript", @mistralai/mistralai 2.7.0 and ollama 0.6.4: after npm install in its folder,
  node tests/golden/js/editors.mjs PROXY
- "Continue", @continuedev/openai-adapters 1.37.0: node tests/golden/continue_adapters.mjs, with CONTINUE a folder in
  which npm has installed them and ENDPOINT=PROXY
- "huggingface.js", @huggingface/inference 4.13.30: after npm install in its folder,
  node tests/golden/js/hugging_face.mjs PROXY
- "llama.vscode", 3938fb3: node tests/golden/llama_vscode.cjs, with LLAMA_VSCODE its folder and ENDPOINT=PROXY
"""

import json
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

KEPT = ("content-type", "user-agent", "authorization")


class Recorder(BaseHTTPRequestHandler):
    """Passes a request on and remembers it."""

    protocol_version = "HTTP/1.1"
    upstream = ""
    recorded: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._pass_on(b"")

    def do_POST(self) -> None:
        self._pass_on(self.rfile.read(int(self.headers.get("content-length", 0))))

    def _pass_on(self, body: bytes) -> None:
        # curl may send a header that ends with a space, which httpx would not.
        headers = {k: v.strip() for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        answer = httpx.request(self.command, self.upstream + self.path, content=body, headers=headers, timeout=300)
        sent = {name: self.headers[name] for name in KEPT if name in self.headers}
        entry = {"method": self.command, "path": self.path, "headers": sent, "status": answer.status_code}
        entry |= {"body": json.loads(body)} if body else {}
        if entry not in self.recorded:
            self.recorded.append(entry)
        self.send_response(answer.status_code)
        for name in ("content-type", "retry-after", "x-should-retry"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    Recorder.upstream, Recorder.recorded = sys.argv[2].rstrip("/"), []
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Recorder)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        path = Path(sys.argv[3])
        clients = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        clients[sys.argv[4]] = Recorder.recorded
        path.write_text(_lines(clients), encoding="utf-8")


def _lines(clients: dict[str, list[dict[str, Any]]]) -> str:
    """One request a line, so that a change can be read."""
    blocks = []
    for name, requests in sorted(clients.items()):
        rows = ",\n".join(f"  {json.dumps(request, ensure_ascii=False)}" for request in requests)
        blocks.append(f" {json.dumps(name)}: [\n{rows}\n ]")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


if __name__ == "__main__":
    main()
