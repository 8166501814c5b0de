# Infold with its own PostgreSQL inside; DATABASE_URL selects another one. docs/deploy.md tells the rest.
#
#   docker build -t infold .
#   docker run --init --read-only --tmpfs /tmp -p 127.0.0.1:8808:8808 -v infold:/data infold
#
# It writes to /data alone, and for unix sockets to /tmp; where /tmp cannot be written, to /data for these as well.

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements.lock ./
# Every package is checked against its hash, also what builds ours; the rest of the lock's second part stays out.
RUN sed '/^# Only for the extras and the tests:/,$d' requirements.lock > serving.lock \
    && awk '/^[a-z]/ {builds = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/} builds' \
        requirements.lock > building.lock \
    && python -m venv --without-pip /opt/infold \
    && pip --python /opt/infold/bin/python install --no-cache-dir --no-deps --require-hashes -r serving.lock \
    && pip install --no-cache-dir --no-deps --require-hashes -r building.lock
COPY pyproject.toml README.md LICENSE ./
COPY memory memory
COPY proxy proxy
COPY migrations migrations
# litellm is data for us and never imported, so its 44 MB of bytecode would only lie there.
RUN pip wheel --no-deps --no-index --no-build-isolation --wheel-dir dist . \
    && pip --python /opt/infold/bin/python install --no-cache-dir --no-deps --no-index dist/*.whl \
    && find /opt/infold -name __pycache__ -prune -exec rm -r {} + \
    && /opt/infold/bin/python -m compileall -q -x '/litellm/' /opt/infold/lib

FROM python:3.11-slim-bookworm
# A normal user with a line in /etc/passwd: PostgreSQL refuses root, and initdb refuses a user without a name.
# The base image comes without bytecode; a root that cannot be written would compile the library at each start.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data infold \
    && install --directory --owner=infold --group=infold --mode=0700 /data \
    && python -m compileall -q /usr/local/lib/python3.11
COPY --from=build /opt/infold /opt/infold
ENV PATH=/opt/infold/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    INFOLD_DATA_DIR=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8808
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --start-interval=1s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8808/healthz', timeout=3)"]
ENTRYPOINT ["infold"]
CMD ["serve", "--host", "0.0.0.0"]
