"""Runs in a copy of the packages: serves a checkpoint, asks it what it is told to, and prints the answers as JSON.

Arguments: the checkpoint, a JSON list of [method, path, body], a command line whose help is wanted or "", and further
flags of `serve`.
"""

SERVED = """
import json, os, socket, subprocess, sys, time
import httpx

folder, asked, wanted, *flags = sys.argv[1], json.loads(sys.argv[2]), *sys.argv[3:]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
glm = [sys.executable, "-P", "-m", "server.cli"]
environment = {**os.environ, "GLM_INFILL_LOG_LEVEL": "error", "COLUMNS": "400"}
command = [*glm, "serve", folder, "--port", str(port), "--kv-cache-gb", "0.01", *flags]
server = subprocess.Popen(command, env=environment)
try:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        end = time.monotonic() + 100
        while True:
            assert server.poll() is None and time.monotonic() < end
            try:
                if client.get("/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        answers = []
        for method, path, body in asked:
            answer = client.request(method, path, json=body)
            answers.append([answer.status_code, answer.json()])
    shown = subprocess.run([*glm, *wanted.split()], env=environment, capture_output=True, text=True).stdout
    print(json.dumps({"answers": answers, "shown": shown if wanted else ""}))
finally:
    server.terminate()
    server.wait(60)
"""
