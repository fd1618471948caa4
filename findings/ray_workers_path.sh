#!/usr/bin/env bash
# Ray's workers import from the folder that the driver stood in, also when the driver itself was started with -P.
#
# Ray 2.60.0. A good guess: `python -P` (or PYTHONSAFEPATH=1, which workers inherit) keeps the current folder off the path of
# the driver and of all that it starts. Seen: the driver does not find a module of the current folder, its remote functions
# do: the driver tells the workers its current folder, and they put it on their path. Deployments of Ray Serve likewise. What
# keeps it off: start the driver in an empty folder, or change into one before `ray.init`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0 2> /dev/null
mkdir "$folder/here" "$folder/empty"
echo 'WHERE = __file__' > "$folder/here/a_module_of_the_folder.py"
cat > "$folder/driver.py" <<'PROGRAM'
import importlib.util
import os
import sys

import ray

if len(sys.argv) > 1:
    os.chdir(sys.argv[1])
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")


@ray.remote
def found():
    return importlib.util.find_spec("a_module_of_the_folder") is not None


print("driver:", importlib.util.find_spec("a_module_of_the_folder") is not None, "worker:", ray.get(found.remote()))
PROGRAM
cd "$folder/here"
export PYTHONSAFEPATH=1 RAY_USAGE_STATS_ENABLED=0
stood=$("$folder/venv/bin/python" -P "$folder/driver.py" 2> /dev/null | tail -n 1)
moved=$("$folder/venv/bin/python" -P "$folder/driver.py" "$folder/empty" 2> /dev/null | tail -n 1)
echo "standing in the folder:      $stood"
echo "changed to an empty folder:  $moved"
[ "$stood" = "driver: False worker: True" ]
[ "$moved" = "driver: False worker: False" ]
