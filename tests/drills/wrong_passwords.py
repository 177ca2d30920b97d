#!/usr/bin/env python3
"""Measures what wrong passwords cost other requests.

Usage: tests/drills/wrong_passwords.py PLUGWAY [SECONDS]

For 1 and 2 workers, the p50 and p99 of three kinds of requests are printed, quiet and while 100 requests a second have
wrong passwords for `auth-basic` (bcrypt, cost 10): requests on a route without the plugin, requests of a user whose password
is remembered, and the wrong ones themselves with their statuses. The first second is left out. Requests are sent on time,
whether earlier ones were answered or not (open loop). The machine must be quiet for the p99 to mean anything.
"""

import asyncio
import base64
import collections
import os
import re
import subprocess
import sys
import tempfile
import time

# The password is `password`.
HASH = "$2y$10$abcdefghijklmnopqrstuu5Lo0g67CiD3M4RpN1BmBb4Crp5w7dbK"

MANIFEST = """
workers = {workers}
[[listener]]
address = "127.0.0.1:0"
[upstream.app]
endpoints = ["127.0.0.1:{origin}"]
[[route]]
upstream = "app"
[[route]]
path = "/staff"
upstream = "app"
plugins = ["staff"]
[plugin.staff]
use = "auth-basic"
config.users = "alice:{hash}"
"""


async def answer(reader, writer):
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        writer.close()


async def ask(port, path, password):
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    credentials = base64.b64encode(f"alice:{password}".encode()).decode()
    head = f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {credentials}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    status = int((await reader.readline()).split()[1])
    await reader.read()
    writer.close()
    return status, time.perf_counter() - began


async def load(port, rate, seconds, path, password):
    """Returns the latencies and statuses of requests after the first second."""
    tasks, began = [], time.perf_counter()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0, due - time.perf_counter()))
        word = f"{password}{number}" if password == "wrong" else password
        tasks.append(asyncio.create_task(ask(port, path, word)))
    answers = await asyncio.gather(*tasks)
    answers = answers[rate:]
    return sorted(took for _, took in answers), collections.Counter(status for status, _ in answers)


def shown(answers):
    took, statuses = answers
    at = lambda part: took[min(len(took) - 1, int(len(took) * part))] * 1000
    return f"p50 {at(0.5):7.2f} ms  p99 {at(0.99):7.2f} ms  {dict(statuses)}"


async def drill(plugway, workers, seconds):
    origin = await asyncio.start_server(answer, "127.0.0.1", 0)
    text = MANIFEST.format(workers=workers, origin=origin.sockets[0].getsockname()[1], hash=HASH)
    with tempfile.TemporaryDirectory() as folder:
        manifest = os.path.join(folder, "plugway.toml")
        open(manifest, "w").write(text)
        errors = open(os.path.join(folder, "log"), "w+")
        proxy = subprocess.Popen([plugway, "run", manifest], stderr=errors)
        try:
            port = None
            while port is None:
                await asyncio.sleep(0.05)
                found = re.search(r"listening at http://127\.0\.0\.1:(\d+)", open(errors.name).read())
                port = int(found[1]) if found else None
            assert (await ask(port, "/staff", "password"))[0] == 200
            print(f"{workers} workers")
            free, known = await asyncio.gather(
                load(port, 100, seconds, "/", "x"), load(port, 100, seconds, "/staff", "password")
            )
            print("  quiet:    without the plugin ", shown(free))
            print("            remembered         ", shown(known))
            free, known, wrong = await asyncio.gather(
                load(port, 100, seconds, "/", "x"),
                load(port, 100, seconds, "/staff", "password"),
                load(port, 100, seconds, "/staff", "wrong"),
            )
            print("  attacked: without the plugin ", shown(free))
            print("            remembered         ", shown(known))
            print("            wrong passwords    ", shown(wrong))
        finally:
            proxy.terminate()
            proxy.wait()


def main():
    plugway, seconds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10
    for workers in (1, 2):
        asyncio.run(drill(plugway, workers, seconds))


main()
