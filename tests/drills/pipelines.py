#!/usr/bin/env python3
"""Measures what deep pipelines of HTTP/1 requests cost other requests.

Usage: tests/drills/pipelines.py PLUGWAY [CONNECTIONS] [SECONDS]

The p50 and p99 of requests on one connection, one at a time, are printed twice: quiet, and while other connections send
requests as fast as they are accepted, without a wait for their responses. All of them get a fixed response. The machine
must be quiet for the p99 to mean anything.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

MANIFEST = """
workers = 1
[[listener]]
address = "127.0.0.1:0"
limits.requests = 1000000000
[[route]]
respond = { body = "hello" }
"""

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

# In a process of its own: threads of this one would share an interpreter with the measured requests.
SENDER = f"""
import socket, sys, threading
def send(stream):
    try:
        while True:
            stream.sendall({REQUEST!r} * 1000)
    except OSError:
        pass
streams = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(int(sys.argv[2]))]
for stream in streams:
    threading.Thread(target=send, args=(stream,), daemon=True).start()
def take(stream):
    while stream.recv(1 << 16):
        pass
takers = [threading.Thread(target=take, args=(stream,), daemon=True) for stream in streams]
for taker in takers:
    taker.start()
print("sending", flush=True)
sys.stdin.read()
"""


def measure(port, seconds):
    stream, took = socket.create_connection(("127.0.0.1", port)), []
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        stream.sendall(REQUEST)
        assert stream.recv(4096).startswith(b"HTTP/1.1 200")
        took.append(time.perf_counter() - began)
    took.sort()
    at = lambda part: took[min(len(took) - 1, int(len(took) * part))] * 1000
    return f"p50 {at(0.5):7.2f} ms  p99 {at(0.99):7.2f} ms  {len(took)} requests"


def main():
    plugway, connections, seconds = sys.argv[1], *map(int, (sys.argv[2:] + ["4", "5"][len(sys.argv) - 2 :])[:2])
    with tempfile.TemporaryDirectory() as folder:
        manifest, log = os.path.join(folder, "plugway.toml"), open(os.path.join(folder, "log"), "w+")
        open(manifest, "w").write(MANIFEST)
        proxy = subprocess.Popen([plugway, "run", manifest], stderr=log)
        try:
            while not (found := re.search(r"listening at http://127\.0\.0\.1:(\d+)", open(log.name).read())):
                time.sleep(0.05)
            port = int(found[1])
            print("quiet:    ", measure(port, seconds))
            command = [sys.executable, "-c", SENDER, str(port), str(connections)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sender:
                sender.stdout.readline()
                print("attacked: ", measure(port, seconds))
                sender.stdin.close()
                sender.kill()
        finally:
            proxy.terminate()
            proxy.wait()


main()
