#!/usr/bin/env python3
"""Clients that take their responses slowly or not at all: what they cost the proxy, and what others notice.

Run it on a quiet machine: `tests/drills/slow_readers.py target/release/plugway [case ...]`. It starts an origin and the
proxy on loopback, and prints one row for each case: resident memory per connection, and the latency of another client.
"""
import http.client, multiprocessing, os, socket, ssl, struct, subprocess, sys, tempfile, threading, time

GET = bytes([0x82, 0x86, 0x41, 1, 0x61, 0x84])
PIECE = b"x" * (256 << 10)


def origin(listener):
    """Answers `/N` with N bytes, as fast as they are taken."""
    def serve(conn):
        reader = conn.makefile("rb")
        try:
            while line := reader.readline():
                target = line.split()[1].decode()
                while reader.readline() not in (b"\r\n", b""):
                    pass
                left = int(target.strip("/") or SIZE)
                conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
                while left > 0:
                    conn.sendall(PIECE[:left])
                    left -= len(PIECE)
        except (OSError, ValueError):
            pass
        conn.close()
    threading.stack_size(128 << 10)
    while True:
        conn, _ = listener.accept()
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(conn,), daemon=True).start()


SIZE = 16 << 20


class Proxy:
    def __init__(self, binary, limits="", tls=False, workers=1):
        self.folder = tempfile.TemporaryDirectory()
        at = lambda name: os.path.join(self.folder.name, name)
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.origin = multiprocessing.Process(target=origin, args=(listener,), daemon=True)
        self.origin.start()
        table = ""
        if tls:
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                            "-keyout", at("key.pem"), "-out", at("cert.pem"), "-days", "2", "-subj", "/CN=localhost",
                            "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
            table = '[listener.tls]\ncertificates = [{ chain = "cert.pem", key = "key.pem" }]\n'
        with open(at("plugway.toml"), "w") as manifest:
            manifest.write(f'workers = {workers}\n[admin]\naddress = "off"\n[[listener]]\naddress = "127.0.0.1:0"\n'
                           f'limits = {{ {limits} }}\n{table}[upstream.app]\n'
                           f'endpoints = ["127.0.0.1:{listener.getsockname()[1]}"]\n[[route]]\nupstream = "app"\n')
        self.child = subprocess.Popen([binary, "run", at("plugway.toml")], stderr=subprocess.PIPE, text=True)
        while "listening at" not in (line := self.child.stderr.readline()):
            assert line, "the proxy did not start"
        self.port = int(line.split()[-1].rsplit(":", 1)[1].strip("/"))
        threading.Thread(target=self.child.stderr.read, daemon=True).start()

    def rss_kib(self):
        with open(f"/proc/{self.child.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    def settled_kib(self):
        """Resident memory once it has not changed for a second."""
        last, since = self.rss_kib(), time.monotonic()
        deadline = since + 30
        while time.monotonic() - since < 1 and time.monotonic() < deadline:
            time.sleep(0.1)
            if abs((now := self.rss_kib()) - last) > 64:
                last, since = now, time.monotonic()
        return self.rss_kib()

    def connect(self, tls=None):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        sock.connect(("127.0.0.1", self.port))
        if tls:
            sock = tls.wrap_socket(sock, server_hostname="localhost")
        return sock

    def stop(self):
        self.child.kill()
        self.child.wait()
        self.origin.kill()


def tls_context(alpn):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    return context


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def preface(window):
    settings = frame(4, 0, 0, struct.pack(">HI", 4, window))
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings


def requests(streams, target=None):
    block = GET if target is None else bytes([0x82, 0x86, 0x41, 1, 0x61, 0x04, len(target)]) + target
    return b"".join(frame(1, 5, stream, block) for stream in range(1, 2 * streams, 2))


def p99(proxy, seconds=4, rate=200):
    """The 99th percentile, in milliseconds, of a client that asks for 1 KiB so many times a second."""
    conn, took = http.client.HTTPConnection("127.0.0.1", proxy.port), []
    begin = time.monotonic()
    for n in range(seconds * rate):
        time.sleep(max(0, begin + n / rate - time.monotonic()))
        at = time.monotonic()
        conn.request("GET", "/1024")
        conn.getresponse().read()
        took.append((time.monotonic() - at) * 1000)
    return sorted(took)[int(len(took) * 0.99)]


def row(name, proxy, connections, begin):
    """Opens connections, and tells what they cost."""
    before, held = proxy.settled_kib(), []
    for _ in range(connections):
        held.append(begin())
    after = proxy.settled_kib()
    print(f"| {name} | {connections} | {(after - before) / connections:.1f} KiB | {(after - before) / 1024:.1f} MiB |",
          flush=True)
    return held


def http1(binary, tls):
    proxy, context = Proxy(binary, tls=tls), tls_context("http/1.1") if tls else None
    def begin():
        sock = proxy.connect(context)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        return sock
    row("HTTP/1 over TLS, nothing taken" if tls else "HTTP/1, nothing taken", proxy, COUNT, begin)
    proxy.stop()


def http2(binary, streams, connections, tls=False, window=(1 << 31) - 1):
    proxy, context = Proxy(binary, tls=tls), tls_context("h2") if tls else None
    def begin():
        sock = proxy.connect(context)
        sock.sendall(preface(window) + frame(8, 0, 0, struct.pack(">I", (1 << 31) - 65536)) + requests(streams))
        return sock
    what = "windows open" if window else "windows shut"
    row(f"HTTP/2{' over TLS' if tls else ''}, {streams} streams, {what}, nothing taken", proxy, connections, begin)
    proxy.stop()


def grown(binary):
    """Streams that were quick at first, so that buffers are large, and then stand still."""
    proxy = Proxy(binary)
    def begin():
        sock = proxy.connect()
        sock.sendall(preface((1 << 31) - 1) + frame(8, 0, 0, struct.pack(">I", (1 << 31) - 65536)) + requests(128))
        got = 0
        while got < 128 << 20:
            got += len(sock.recv(1 << 20))
        return sock
    row("HTTP/2, 128 streams, stopped after 128 MiB", proxy, 2, begin)
    proxy.stop()


def drip(binary):
    """Windows of nothing, opened by a byte on every stream each second."""
    proxy = Proxy(binary, workers=1)
    quiet = p99(proxy)
    def begin():
        sock = proxy.connect()
        sock.sendall(preface(0) + requests(128))
        return sock
    held = row("HTTP/2, 3 x 128 streams, window 0 with a drip", proxy, 3, begin)
    stop = threading.Event()
    def dripping():
        update = b"".join(frame(8, 0, stream, struct.pack(">I", 1)) for stream in range(1, 256, 2))
        while not stop.wait(1):
            for sock in held:
                try:
                    sock.sendall(update)
                    sock.recv(1 << 16)
                except OSError:
                    pass
    threading.Thread(target=dripping, daemon=True).start()
    busy = p99(proxy, seconds=6)
    print(f"| others' p99 | quiet {quiet:.2f} ms | dripping {busy:.2f} ms | {busy / quiet:.2f} x, "
          f"{proxy.rss_kib() / 1024:.1f} MiB in all |", flush=True)
    stop.set()
    proxy.stop()


def idle(binary, tls, alpn=None):
    proxy, context = Proxy(binary, tls=tls), tls_context(alpn) if tls else None
    def begin():
        sock = proxy.connect(context)
        if alpn == "h2":
            sock.sendall(preface(65535) + frame(1, 5, 1, bytes([0x82, 0x86, 0x41, 1, 0x61, 0x04, 2]) + b"/1"))
            got = b""
            while frame(0, 1, 1, b"x") not in got:
                got += sock.recv(4096)
        else:
            sock.sendall(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
            got = b""
            while not got.endswith(b"x"):
                got += sock.recv(4096)
        return sock
    row(f"idle, {'TLS ' if tls else ''}{alpn or ''}", proxy, IDLE, begin)
    proxy.stop()


COUNT = int(os.environ.get("COUNT", 500))
IDLE = int(os.environ.get("IDLE", 3000))
CASES = {
    "http1": lambda binary: http1(binary, False),
    "tls": lambda binary: http1(binary, True),
    "h2-one": lambda binary: http2(binary, 1, 100),
    "h2-many": lambda binary: http2(binary, 100, 10),
    "h2-tls": lambda binary: http2(binary, 100, 10, tls=True),
    "h2-shut": lambda binary: http2(binary, 100, 10, window=0),
    "grown": grown,
    "drip": drip,
    "idle": lambda binary: idle(binary, False),
    "idle-tls": lambda binary: idle(binary, True, "http/1.1"),
    "idle-h2": lambda binary: idle(binary, True, "h2"),
}

if __name__ == "__main__":
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    print("| case | connections | each | all |\n|---|---|---|---|")
    for case in sys.argv[2:] or CASES:
        CASES[case](sys.argv[1])
