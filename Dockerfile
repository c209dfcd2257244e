# The service in a container: docs/serving.md.
#   docker build --tag openblip .
#   docker build --tag openblip:cuda --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 \
#       --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
ARG BASE=python:3.12-slim
FROM ${BASE}

# The CUDA images bring no Python; those of Python bring one that is newer than their system's. Versions of Debian
# packages depend on the base, which is an argument.
# hadolint ignore=DL3008
RUN command -v pip >/dev/null \
    || (apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv /opt/openblip
ENV PATH=/opt/openblip/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
# What torch needs comes from PyPI with the rest: the index of PyTorch may lack the versions of constraints.txt.
RUN PIP_INDEX_URL=${TORCH_INDEX} pip install --no-cache-dir --no-deps --constraint constraints.txt torch torchvision \
    && pip install --no-cache-dir --constraint constraints.txt '.[serving]' \
    && rm -rf /src

# Not root, and nothing of the file system is written to: run with --read-only --tmpfs /tmp.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin openblip
USER 10001:10001
WORKDIR /
ENV HOME=/tmp HF_HUB_OFFLINE=1
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["openblip", "serve", "--host", "0.0.0.0", "--port", "8000"]
