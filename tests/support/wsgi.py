"""A small application for gunicorn that shows what the proxy told it."""


def app(environ, start_response):
    names = {"host": "HTTP_HOST", "real": "HTTP_X_REAL_IP", "for": "HTTP_X_FORWARDED_FOR", "proto": "HTTP_X_FORWARDED_PROTO"}
    body = " ".join(f"{name}={environ.get(key, '-')}" for name, key in names.items()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
