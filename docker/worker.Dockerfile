# syntax=docker/dockerfile:1
# The worker: torch, FAISS and the models. From the repository's root:
#   docker build --file docker/worker.Dockerfile --build-arg TORCH_BUILD=cpu --tag sparke-worker:cpu .
#   docker build --file docker/worker.Dockerfile --build-arg TORCH_BUILD=cuda --tag sparke-worker:gpu .
# The CUDA build of torch brings CUDA 13 along; the host needs NVIDIA's driver, 580 or newer, and its container toolkit.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# cpu or cuda: which build of torch is installed
ARG TORCH_BUILD=cpu
# of the CPU build; that of CUDA is in requirements-gpu.txt, with all its libraries and their hashes
ARG TORCH_VERSION=2.13.0
ARG CPU_TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY docker/requirements-gpu.txt docker/
# Without what torch depends on: that comes below, in the versions of constraints.txt.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/sparke \
    && case "${TORCH_BUILD}" in \
        cpu) /opt/sparke/bin/python -m pip install --no-deps --index-url "${CPU_TORCH_INDEX}" "torch==${TORCH_VERSION}" ;; \
        cuda) /opt/sparke/bin/python -m pip install --no-deps --require-hashes --requirement docker/requirements-gpu.txt ;; \
        *) echo "TORCH_BUILD is cpu or cuda, got ${TORCH_BUILD}" >&2; exit 1 ;; \
    esac
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY sparke_engine sparke_engine
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/sparke/bin/python -m pip install --constraint constraints.txt ".[worker,otel]" \
    && /opt/sparke/bin/python -m pip check

FROM ${PYTHON_IMAGE}
# The same user as in the API's image: they share the volume of images. A container without volumes works in these folders.
RUN groupadd --gid 10001 sparke \
    && useradd --uid 10001 --gid sparke --no-create-home --home-dir /tmp --shell /usr/sbin/nologin sparke \
    && install --directory --owner=sparke --group=sparke \
        /var/lib/sparke /var/lib/sparke/images /var/lib/sparke/hub /var/lib/sparke/snapshots
COPY docker/check_health.py /opt/check_health.py
COPY --from=build /opt/sparke /opt/sparke
ENV PATH=/opt/sparke/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/lib/sparke/hub \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    SPARKE_DATA_DIR=/var/lib/sparke \
    SPARKE_LOG_FORMAT=json \
    SPARKE_MEMORY_SNAPSHOTS_DIR=/var/lib/sparke/snapshots \
    SPARKE_WORKER_METRICS_HOST=0.0.0.0 \
    SPARKE_WORKER_METRICS_PORT=9464
USER 10001:10001
WORKDIR /var/lib/sparke
EXPOSE 9464
# Healthy once the models are loaded: a download takes its time.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python", "/opt/check_health.py", "http://127.0.0.1:{SPARKE_WORKER_METRICS_PORT}/readyz"]
ENTRYPOINT ["sparke"]
CMD ["worker"]
