# blemish serve on the processor, as an ordinary user.
#
#   docker build -t blemish .
#   docker run -p 8000:8000 -e BLEMISH_TOKEN=... -v blemish:/data blemish
#
# On x86-64 the default torch comes with libraries for graphics cards. To leave gigabytes out, name the package index of
# torch's builds without them: --build-arg PIP_EXTRA_INDEX_URL=...

FROM python:3.12-slim

ARG PIP_EXTRA_INDEX_URL=""
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src ./src
RUN PIP_EXTRA_INDEX_URL="$PIP_EXTRA_INDEX_URL" pip install -c constraints.txt ".[serve,postgres]" \
    && useradd --create-home --uid 10001 blemish \
    && install -d -o blemish -g blemish /data

USER blemish
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]

# Listening beyond the container needs a token: pass BLEMISH_TOKEN, or add --no-auth where the network is trusted.
ENTRYPOINT ["blemish"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000", "--db", "/data/history.db", "--keep", "/data/kept"]
