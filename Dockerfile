FROM python:3.12-slim

# No pip cache, no byte code of a build user: the image holds what runs and nothing else.
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /usr/src/taskd
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY bin bin
COPY schema schema
COPY taskd taskd
COPY twisted twisted
RUN pip install . && twistd --help >/dev/null

COPY deploy/healthcheck.py /usr/local/lib/taskd/healthcheck.py

RUN useradd --system --create-home --home-dir /var/lib/taskd taskd
USER taskd
WORKDIR /var/lib/taskd

EXPOSE 5000
CMD ["twistd", "-n", "--pidfile=", "taskserver", "--listen", "tcp:5000"]
