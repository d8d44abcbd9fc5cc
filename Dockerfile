# The packages are installed in a stage of their own: what pip needs to do so stays behind there.
FROM python:3.13-slim AS build
COPY requirements.txt .
RUN python -m venv --without-pip /venv \
 && pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check -r requirements.txt
COPY main.py schema.sql /app/
# Compiled here, because the service cannot write where it runs; readable whatever the umask of the checkout.
RUN python -m compileall -q --invalidation-mode unchecked-hash /app && chmod -R a+rX /app /venv

FROM python:3.13-slim
# Nothing is installed from here on: who breaks in is not to find the means.
RUN useradd --uid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin app \
 && python -m pip uninstall --yes --quiet --root-user-action=ignore pip \
 && rm -r "$(python -c 'import ensurepip; print(*ensurepip.__path__)')"
COPY --from=build /venv /venv
COPY --from=build /app /app
WORKDIR /app
# By number, so that an orchestrator can tell that it is not root.
USER 10001:10001
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOST=0.0.0.0 PORT=8000
EXPOSE 8000
# /livez and not /readyz: an orchestrator replaces what is unhealthy, and a new process would not find
# the database any sooner. Whoever steers traffic asks /readyz.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-IS", "-c", "\
import http.client, os, sys; \
service = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); \
service.request('GET', '/livez'); \
sys.exit(service.getresponse().status != 200)"]
# Takes up to 13 s to stop: give it --stop-timeout 15, or `docker stop` cuts requests off after 10.
CMD ["python", "main.py"]
