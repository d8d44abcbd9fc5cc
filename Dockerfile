FROM python:3.13-slim
RUN useradd --uid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin app
WORKDIR /app
COPY deploy/requirements.txt .
RUN pip install --no-cache-dir --no-deps --root-user-action=ignore -r requirements.txt
COPY main.py embedded.py schema.sql ./
# Compiled here, because the service cannot write there; readable whatever the checkout's umask.
RUN python -m compileall -q . && chmod -R a+rX .
# By number, so that an orchestrator can tell that it is not root.
USER 10001:10001
# uvicorn reads its options from the environment: override any of them with -e UVICORN_..., and set
# the number of workers with -e WEB_CONCURRENCY. Give it 15 s to stop (--stop-timeout): requests in
# flight get 10 of them.
ENV PYTHONUNBUFFERED=1 UVICORN_HOST=0.0.0.0 UVICORN_PORT=8000 UVICORN_HTTP=zttp \
    UVICORN_SERVER_HEADER=false UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN=10 OTEL_EXPORTER_OTLP_TIMEOUT=2
EXPOSE 8000
# /livez and not /readyz: a new process would not reach the database any sooner.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s CMD python -c "\
from http.client import HTTPConnection; \
service = HTTPConnection('127.0.0.1', $UVICORN_PORT, timeout=4); service.request('GET', '/livez'); \
assert service.getresponse().status == 200"
CMD ["uvicorn", "main:app"]
