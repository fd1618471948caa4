#!/usr/bin/env bash
# prometheus_client 0.26.0: the OpenMetrics format renames samples whose name has a colon, and leaves the family's name.
#
# A good guess: both formats of one registry have the same names, and what one parser of the library reads is what its writer was
# given. Seen: a gauge `vllm:requests_running` is `vllm:requests_running` in the text format; in OpenMetrics its HELP and TYPE lines
# keep the colon, but the sample is `vllm_requests_running`. The library's own parser then finds two families, the first without a
# sample and the second without a type or help. Whoever lets `Accept` choose (Prometheus asks for OpenMetrics) stores other series
# than the dashboards ask for, without an error. Names with colons are valid in Prometheus, and model servers use them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check prometheus_client==0.26.0 2> /dev/null
cd "$folder"
seen=$("$folder/venv/bin/python" -c '
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Gauge, exposition
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

registry = CollectorRegistry()
Gauge("vllm:requests_running", "Requests.", registry=registry).set(3)
print(version("prometheus_client"))
print(exposition.generate_latest(registry).decode().splitlines()[-1])
print(*openmetrics.generate_latest(registry).decode().splitlines()[1:3], sep="\n")
for family in text_string_to_metric_families(openmetrics.generate_latest(registry).decode()):
    print(family.name, family.type, [sample.name for sample in family.samples])
')
echo "$seen"
[ "$seen" = "0.26.0
vllm:requests_running 3.0
# TYPE vllm:requests_running gauge
vllm_requests_running 3.0
vllm:requests_running gauge []
vllm_requests_running unknown ['vllm_requests_running']" ]
