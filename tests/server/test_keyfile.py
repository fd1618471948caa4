"""Key files: what is written can be read, and what is not a key file is refused by its line."""

import hashlib
import json
import stat

import pytest
from typer.testing import CliRunner

import server.cli
from quant.usage import UsageError
from server.keyfile import new_key, read_keys

ENTRY = {"name": "a", "sha256": "0" * 64}


def test_the_command_prints_the_key_once_and_keeps_only_its_hash(tmp_path):
    path = tmp_path / "keys.jsonl"
    line = ["keys", "new", "ann", "--file", str(path)]
    done = CliRunner().invoke(server.cli.app, line)
    assert done.exit_code == 0, done.output
    key = done.stdout.strip()
    assert len(key) > 40
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = CliRunner().invoke(server.cli.app, ["keys", "new", "bob", "--admin", "--file", str(path), "--json"])
    assert json.loads(again.stdout)["name"] == "bob"
    assert [(e.name, e.role) for e in read_keys(path)] == [("ann", "user"), ("bob", "admin")]
    assert read_keys(path)[0].sha256 == hashlib.sha256(key.encode()).hexdigest()
    taken = CliRunner().invoke(server.cli.app, line)
    assert (taken.exit_code, "ann" in taken.stderr, "Traceback" in taken.stderr) == (2, True, False)


@pytest.mark.parametrize("fields", [{"name": ""}, {"name": "a\nb"}, {"name": "a", "tokens_per_minute": 0}])
def test_a_key_with_bad_fields_is_not_made(tmp_path, fields):
    with pytest.raises(UsageError, match=r"name|tokens_per_minute"):
        new_key(tmp_path / "keys", **fields)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "holds no key"),
        ([ENTRY, "{"], "line 2: not a JSON object"),
        ([[]], "line 1"),
        ([{**ENTRY, "sha256": "key"}], "line 1: sha256"),
        ([{**ENTRY, "role": "root"}], "line 1: role"),
        ([{**ENTRY, "requests_per_minute": -1}], "line 1: requests_per_minute"),
        ([{**ENTRY, "password": "x"}], "line 1: unknown field password"),
        ([ENTRY, ENTRY], "line 2: a occurs twice"),
    ],
)
def test_what_is_no_key_file_is_refused_by_its_line(tmp_path, lines, says):
    path = tmp_path / "keys"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    with pytest.raises(UsageError, match=says):
        read_keys(path)


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_serve_says_in_one_line_that_a_key_file_cannot_be_read(tmp_path, content):
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    done = CliRunner().invoke(server.cli.app, ["serve", "--api-keys", str(path)])
    assert (done.exit_code, "--api-keys" in done.stderr, "Traceback" in done.stderr) == (2, True, False)
