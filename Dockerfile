# One image for the head and the workers of a Ray cluster (docs/ray-cluster.md):
#
#   docker build -t registry.example.com/latentcache:0.1 .
#
# torch comes from PyPI with its CUDA libraries. The nodes need NVIDIA's driver and container toolkit.
FROM python:3.11-slim-bookworm

# wget: KubeRay's health probes call it inside the container.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/latentcache
COPY pyproject.toml README.md LICENSE ./
COPY latentcache latentcache/
COPY configs configs/
COPY jobs jobs/

# ray[default]: the dashboard, which takes jobs and serves metrics.
RUN pip install --no-cache-dir '.[s3,diffusers]' 'ray[default]'

# The user and id of the rayproject/ray images.
RUN useradd --create-home --uid 1000 ray
USER ray
WORKDIR /home/ray

CMD ["latentcache", "--help"]
