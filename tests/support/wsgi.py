"""Small applications for gunicorn: one shows what the proxy told it, the other takes and sends much."""


def app(environ, start_response):
    names = {"host": "HTTP_HOST", "real": "HTTP_X_REAL_IP", "for": "HTTP_X_FORWARDED_FOR", "proto": "HTTP_X_FORWARDED_PROTO"}
    body = " ".join(f"{name}={environ.get(key, '-')}" for name, key in names.items()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def bulk(environ, start_response):
    """Reads all content, and answers `/N` with N bytes."""
    received = 0
    while piece := environ["wsgi.input"].read(1 << 16):
        received += len(piece)
    length = int(environ["PATH_INFO"].strip("/") or 0)
    start_response("200 OK", [("Content-Length", str(length)), ("X-Received", str(received))])
    return (b"x" * min(1 << 20, length - at) for at in range(0, length, 1 << 20))
