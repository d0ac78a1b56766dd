# syntax=docker/dockerfile:1
# A supervisor, control and workers; Redis is outside, so TILTYARD_REDIS_URL must be given:
#   docker run -e TILTYARD_REDIS_URL=redis://... -p 8080:8080 -v tiltyard:/var/lib/tiltyard tiltyard

FROM python:3.11-slim AS builder
WORKDIR /src
RUN python -m venv /venv
COPY requirements.lock ./
RUN /venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml LICENSE ./
COPY gateway ./gateway
RUN /venv/bin/pip wheel --no-build-isolation --no-deps --wheel-dir /wheels .
RUN /venv/bin/pip install --no-index --no-deps --find-links /wheels tiltyard

FROM python:3.11-slim
RUN useradd --system --uid 10001 --no-create-home tiltyard
RUN install --directory --owner tiltyard --mode 0700 /var/lib/tiltyard
WORKDIR /srv/tiltyard
COPY --from=builder /venv /venv
COPY models ./models
ENV PATH=/venv/bin:$PATH
ENV TILTYARD_HTTP_HOST=0.0.0.0
ENV TILTYARD_MODEL_STORE=/srv/tiltyard/models
ENV TILTYARD_REDIS_EMBEDDED=false
ENV TILTYARD_STATE_DIR=/var/lib/tiltyard
# One worker for each processor that the container may use; all end in order before Docker's 10 s.
ENV TILTYARD_STOP_S=9
ENV TILTYARD_WORKERS=auto
VOLUME /var/lib/tiltyard
# Inference, gRPC and the admin API; the last listens on loopback unless TILTYARD_ADMIN_HOST says so.
EXPOSE 8080 8081 8082
USER tiltyard
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/v2/health/live', timeout=2)"]
CMD ["tiltyard", "serve"]
