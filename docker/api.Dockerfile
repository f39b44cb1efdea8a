# syntax=docker/dockerfile:1
# The API: no torch, no engine, no model. From the repository's root:
#   docker build --file docker/api.Dockerfile --tag sparke-api .
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/sparke \
    && /opt/sparke/bin/python -m pip install --constraint constraints.txt ".[otel]"

FROM ${PYTHON_IMAGE}
# The same user as in the worker's image: they share the volume of images and files.
RUN groupadd --gid 10001 sparke \
    && useradd --uid 10001 --gid sparke --no-create-home --home-dir /tmp --shell /usr/sbin/nologin sparke \
    && install --directory --owner=sparke --group=sparke /var/lib/sparke /var/lib/sparke/images \
        /var/lib/sparke/files
COPY docker/check_health.py /opt/check_health.py
COPY --from=build /opt/sparke /opt/sparke
# Beyond loopback the API starts only once there is an API key: see docker-compose.yml.
ENV PATH=/opt/sparke/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SPARKE_DATA_DIR=/var/lib/sparke \
    SPARKE_HOST=0.0.0.0 \
    SPARKE_LOG_FORMAT=json \
    SPARKE_PORT=8000
USER 10001:10001
WORKDIR /var/lib/sparke
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "/opt/check_health.py", "http://127.0.0.1:{SPARKE_PORT}/livez"]
ENTRYPOINT ["sparke"]
CMD ["api"]
