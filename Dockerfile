# The server, for CPUs and for CUDA, from one file:
#
#     docker build -t glm-infill .
#     docker build -t glm-infill:cuda --build-arg TORCH=cuda .
#
# torch's CUDA wheels bring CUDA's libraries and NCCL with them, so that both builds stand on the same small base; only
# the driver is the host's. Both publish: torch for CUDA 13, which runs on Turing cards (2080 Ti) and later ones.

# The name of a base moves with its releases: give a release's build the digest that you have tried, which your registry
# tells (`docker buildx imagetools inspect python:3.11-slim`): --build-arg BASE=docker.io/library/python@sha256:…
# None stands here, for none could be had where this was written. The lock files want Python 3.11.
ARG BASE=docker.io/library/python:3.11-slim

FROM ${BASE} AS builder
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/glm-infill
ENV PATH=/opt/glm-infill/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# What changes seldom: the dependencies, by the hashes of the lock files. What these lack, pip finds missing; of torch's
# builds for CPUs alone there is no hash unless deploy/lock.py was given their index.
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY deploy/requirements.txt deploy/torch-cpu.txt deploy/torch-cuda.txt deploy/
RUN --mount=type=cache,target=/root/.cache/pip \
    case ${TORCH} in \
        cpu) pip install --no-deps --extra-index-url ${TORCH_INDEX} -r deploy/torch-cpu.txt ;; \
        cuda) pip install --no-deps --require-hashes -r deploy/torch-cuda.txt ;; \
        *) echo "TORCH=${TORCH}: cpu or cuda" >&2; exit 2 ;; \
    esac \
    && pip install --no-deps --require-hashes -r deploy/requirements.txt \
    && pip check
ARG EXTRAS=
COPY pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip if [ -n "${EXTRAS}" ]; then \
        python -c "import tomllib; extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; \
print('\n'.join(line for name in '${EXTRAS}'.split(',') for line in extras[name]))" > extras.txt \
        && pip freeze --all > installed.txt && pip install -c installed.txt -r extras.txt; \
    fi

# What changes often: the source. The kernels are built for every instruction set; the machine's is chosen at run time.
COPY LICENSE NOTICE README.md ./
COPY quant quant
COPY model model
COPY engine engine
COPY training training
COPY server server
COPY deploy deploy
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --no-build-isolation . \
    && cd / && python -c "from quant import cpu; assert cpu.kernels().library, cpu.kernels().reason" \
    && pip uninstall -y pip \
    && cd /opt/glm-infill/lib/python3*/site-packages/torch \
    && rm -rf include test && find bin -type f ! -name torch_shm_manager -delete

FROM ${BASE}
ARG TORCH=cpu
# Triton compiles a small launcher for each of its kernels, when one first runs.
RUN if [ "${TORCH}" = cuda ]; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi \
    && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin glm-infill
COPY --from=builder /opt/glm-infill /opt/glm-infill
# The root file system may be read-only: all that is ever written goes to /tmp.
ENV PATH=/opt/glm-infill/bin:$PATH \
    HOME=/tmp \
    TRITON_CACHE_DIR=/tmp/triton \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    GLM_INFILL_HOST=0.0.0.0 \
    GLM_INFILL_PORT=8000

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="glm-infill" \
      org.opencontainers.image.description="Quantized inference server for GLM-style blank infilling and span scoring" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# Nobody but root writes here: no file of a stranger stands where Python might look for its own.
WORKDIR /opt/glm-infill
USER 10001:10001
EXPOSE 8000
# Loading does not count against it for as long as the start period.
HEALTHCHECK --interval=10s --timeout=6s --start-period=30m --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['GLM_INFILL_PORT']), timeout=5); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
# The server itself is process 1: it takes the signals, drains, and collects its ranks.
ENTRYPOINT ["glm-infill"]
CMD ["serve", "--quant", "int8"]
