# CPU image: the wheel on slim Debian, a user without rights, a read-only root file system.
#   docker build -f docker/cpu.Dockerfile -t medssl:cpu .
#   docker run --rm --read-only --tmpfs /tmp --network none -v "$PWD:/data" medssl:cpu denoise scan.nii.gz
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
COPY --from=build /wheels /wheels
COPY constraints.txt /constraints.txt
RUN python -m pip install --no-cache-dir --constraint /constraints.txt /wheels/*.whl \
    && rm -rf /wheels \
    && useradd --create-home --uid 1000 medssl
ENV MPLCONFIGDIR=/tmp/matplotlib NUMBA_CACHE_DIR=/tmp/numba PYTHONDONTWRITEBYTECODE=1
USER medssl
WORKDIR /data
ENTRYPOINT ["medssl"]
CMD ["--help"]
