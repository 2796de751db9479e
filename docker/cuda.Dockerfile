# CUDA image: the same wheel on a base that brings torch for the GPU.
#   docker build -f docker/cuda.Dockerfile -t medssl:cuda .
#   docker run --rm --gpus all --read-only --tmpfs /tmp --network none -v "$PWD:/data" medssl:cuda denoise scan.nii.gz
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/medssl
ENV PATH=/opt/medssl/bin:$PATH
COPY --from=build /wheels /wheels
COPY constraints.txt /constraints.txt
RUN python -m pip install --no-cache-dir --constraint /constraints.txt /wheels/*.whl \
    && rm -rf /wheels \
    && useradd --create-home --uid 1001 medssl
ENV MPLCONFIGDIR=/tmp/matplotlib NUMBA_CACHE_DIR=/tmp/numba PYTHONDONTWRITEBYTECODE=1
USER medssl
WORKDIR /data
ENTRYPOINT ["medssl"]
CMD ["--help"]
