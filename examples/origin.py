#!/usr/bin/env python3
"""An origin to try the examples with: answers each request with its own port, a count, and the request as it arrived.

    python3 examples/origin.py 8000 8001 8002

The path /old is a redirect to plain HTTP, and /page is HTML with a link. Responses may be cached for a minute.
"""
import itertools
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Origin(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    count = itertools.count(1)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_GET(self):
        text = f"origin {self.server.server_port}, response {next(self.count)}\n{self.requestline}\n{self.headers}"
        body = text.rstrip().encode() + b"\n"
        is_page = self.path == "/page"
        if is_page:
            body = b'<!DOCTYPE html>\n<title>Page</title>\n<a href="http://app.internal/cart">Cart</a>\n'
        self.send_response(302 if self.path == "/old" else 200)
        if self.path == "/old":
            self.send_header("Location", "http://example.org/new")
        else:
            self.send_header("Cache-Control", "max-age=60")
        self.send_header("Content-Type", "text/html" if is_page else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


for port in [int(port) for port in sys.argv[1:]] or [8000]:
    threading.Thread(target=ThreadingHTTPServer(("127.0.0.1", port), Origin).serve_forever).start()
    print(f"origin at 127.0.0.1:{port}", flush=True)
