FROM python:3.12-slim

# No pip cache, no byte code of a build user: the image holds what runs and nothing else.
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /usr/src/taskd
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY bin bin
COPY schema schema
COPY taskd taskd
COPY twisted twisted
RUN pip install . && twistd --help >/dev/null

COPY deploy/healthcheck.py /usr/local/lib/taskd/healthcheck.py

# Fixed numbers: docker-compose.yml names them for file systems in memory, and they count for files on volumes.
RUN groupadd --system --gid 999 taskd \
    && useradd --system --uid 999 --gid 999 --create-home --home-dir /var/lib/taskd --shell /usr/sbin/nologin taskd
# By number, so that an orchestrator can see that it is not root. Nothing is written outside of /tmp and /var/lib/taskd:
# the root file system may be read-only.
USER 999:999
WORKDIR /var/lib/taskd

EXPOSE 5000
CMD ["twistd", "-n", "--pidfile=", "taskserver", "--listen", "tcp:5000"]
