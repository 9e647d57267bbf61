# The recipe as an image. launch/docker_build.sh builds it, launch/docker_run.sh runs it, docs/cluster.md explains both.

# torch 2.7.0, as locked, brings the libraries of CUDA 12.6, cuDNN and NCCL in wheels. So the small `base` flavour of that
# CUDA version is enough; its cuda-compat lets data-centre drivers older than 12.6 run it. Any Debian or Ubuntu whose
# python3 is 3.10, 3.11 or 3.12 works in its place.
ARG BASE_IMAGE=docker.io/nvidia/cuda:12.6.3-base-ubuntu24.04
FROM ${BASE_IMAGE}

# libibverbs: NCCL looks for it at run time, to use InfiniBand and RoCE between nodes.
# Versions are those of the base's distribution: a version written here would be gone from its mirrors in weeks.
# hadolint ignore=DL3008
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
      ca-certificates ibverbs-providers libibverbs1 python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log

# Before the checkout, so that a change of code does not install them again: the locked packages, by their hashes, less
# those that only development needs. Settings of pip enter as build secrets, which no layer keeps (launch/docker_build.sh).
# Some packages carry files for other Pythons, which do not compile: compileall's status says nothing.
COPY requirements.lock launch/dev_only.txt /opt/locked/
ENV PATH=/opt/venv/bin:${PATH}
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle \
    awk 'NR == FNR { left_out[$1]; next } /^[^ ]/ { split($1, name, "=="); keep = !(name[1] in left_out) } keep' \
      /opt/locked/dev_only.txt /opt/locked/requirements.lock >/opt/locked/image.lock \
 && python3 -m venv /opt/venv \
 && pip install --disable-pip-version-check --progress-bar off --no-compile --require-hashes \
      --requirement /opt/locked/image.lock \
 && pip check \
 && { python -m compileall -qq -j 0 /opt/venv/lib || true; }

# Files belong to root and the user cannot change them. `--user` may name any other user: the folders that are written to
# are open to all, and USER and HOME answer for users that /etc/passwd does not know.
RUN useradd --uid 10001 --no-create-home --home-dir /home/edm2 --shell /bin/bash edm2 \
 && mkdir -p /home/edm2 /opt/edm2/data /opt/edm2/runs \
 && chmod 1777 /home/edm2 /opt/edm2/data /opt/edm2/runs
ENV HOME=/home/edm2 USER=edm2 \
    PYTHONUNBUFFERED=1 GIT_PYTHON_REFRESH=quiet \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /opt/edm2
COPY . .
RUN pip install --disable-pip-version-check --no-cache-dir --no-deps --no-build-isolation --editable . \
 && python -m compileall -q recipe launch

# Last, because they differ from build to build.
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="edm2-recipe" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV EDM2_REVISION=${REVISION}

USER 10001:10001
# Hands SIGTERM of `docker stop` to the ranks, which save; and says what the image can do if no command is given.
ENTRYPOINT ["python", "-I", "-S", "/opt/edm2/launch/entrypoint.py"]
CMD ["self-check"]
