# Infold with its own PostgreSQL inside; DATABASE_URL selects another one.
#
#   docker build -t infold .
#   docker run --init -p 8808:8808 -v infold:/data infold

FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements.lock ./
# Every package is checked against its hash; the tests' part of the lock stays out.
RUN sed '/^# Only for the tests:/,$d' requirements.lock > serving.lock \
    && python -m venv /opt/infold \
    && /opt/infold/bin/pip install --no-cache-dir --no-deps --require-hashes -r serving.lock
COPY pyproject.toml README.md LICENSE ./
COPY memory memory
COPY proxy proxy
COPY migrations migrations
RUN /opt/infold/bin/pip install --no-cache-dir --no-deps . \
    && /opt/infold/bin/python -m compileall -q /opt/infold/lib

FROM python:3.11-slim
# A normal user with a line in /etc/passwd: PostgreSQL refuses root, and initdb refuses a user without a name.
RUN useradd --uid 10001 --user-group --create-home infold \
    && install --directory --owner=infold --group=infold --mode=0700 /data
COPY --from=build /opt/infold /opt/infold
ENV PATH=/opt/infold/bin:$PATH \
    INFOLD_DATA_DIR=/data
USER 10001
WORKDIR /home/infold
VOLUME /data
EXPOSE 8808
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8808/healthz', timeout=3)"]
ENTRYPOINT ["infold"]
CMD ["serve", "--host", "0.0.0.0"]
