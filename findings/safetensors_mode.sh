#!/usr/bin/env bash
# safetensors 0.8.0: save_file makes files that only their owner reads, and puts them in the place of links.
#
# A good guess, and what 0.7.0 does: a file as `open(path, "wb")` makes it, with the mode that the umask leaves, or the mode
# that the file had; a symbolic link is followed, a hard link goes on sharing. Seen with 0.8.0: mode 600 whatever the umask is
# and whatever mode the file had; the link itself is replaced, and the file that it led to stays as it was. So a checkpoint or an
# adapter that one user saves cannot be read by the server of another one, and a folder of links (a cache, a store of versions)
# silently stops being one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
seen() {
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "safetensors==$1" numpy==2.4.6 2> /dev/null
  rm -rf "$folder/files"
  mkdir "$folder/files"
  (cd "$folder/files" && umask 022 && "$folder/venv/bin/python" -c '
import os, stat
import numpy, safetensors
from safetensors.numpy import save_file

tensors = {"weight": numpy.zeros(4, dtype=numpy.float32)}
mode = lambda name: oct(stat.S_IMODE(os.stat(name).st_mode))
save_file(tensors, "new")
open("shared", "w").close(); os.chmod("shared", 0o664); save_file(tensors, "shared")
open("target", "w").close(); os.symlink("target", "link"); save_file(tensors, "link")
open("one", "w").close(); os.link("one", "other"); save_file(tensors, "one")
print(safetensors.__version__, "new", mode("new"), "was 0o664", mode("shared"), "link", os.path.islink("link"),
      "target", os.path.getsize("target") > 0, "hard link", os.path.samefile("one", "other"))
')
}
before=$(seen 0.7.0)
after=$(seen 0.8.0)
printf '%s\n%s\n' "$before" "$after"
[ "$before" = "0.7.0 new 0o644 was 0o664 0o664 link True target True hard link True" ]
[ "$after" = "0.8.0 new 0o600 was 0o664 0o600 link False target False hard link False" ]
