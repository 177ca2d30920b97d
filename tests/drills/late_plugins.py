#!/usr/bin/env python3
"""Measures what late plugin calls cost other requests.

Usage: tests/drills/late_plugins.py PLUGWAY LATE.wasm [SECONDS]

For 1 and 2 workers, and 100 and 400 requests a second, the p99 of requests on a route without the plugin is printed:
quiet, and while 10 % of the requests go to a plugin that spins or takes 45 ms a call. The first second is left out.
Requests are sent on time, whether earlier ones were answered or not (open loop). "Calls" is the number of late calls that
were made in the whole time: each holds a worker for 45 to 60 ms. The machine must be quiet for the p99 to mean anything.
"""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

MANIFEST = """
workers = {workers}
[[listener]]
address = "127.0.0.1:0"
[admin]
address = "127.0.0.1:0"
[upstream.app]
endpoints = ["127.0.0.1:{origin}"]
[[route]]
upstream = "app"
[[route]]
path = "/late"
upstream = "app"
plugins = ["late"]
[plugin.late]
use = "{late}"
on-error = 503
"""


async def answer(reader, writer):
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        writer.close()


async def ask(port, path, how):
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nX-Late: {how}\r\nConnection: close\r\n\r\n".encode())
    status = int((await reader.readline()).split()[1])
    await reader.read()
    writer.close()
    return status, time.perf_counter() - began


async def load(port, rate, seconds, how):
    """Returns the latencies of the other requests after the first second, and how many late ones the plugin passed."""
    began, tasks = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0, due - time.perf_counter()))
        is_late = how and number % 10 == 0
        path = "/late" if is_late else "/"
        tasks.append((number / rate, is_late, asyncio.create_task(ask(port, path, how or ""))))
    others, called = [], 0
    for at, is_late, task in tasks:
        status, took = await task
        if is_late:
            called += status == 200
        elif at >= 1:
            assert status == 200, status
            others.append(took)
    return sorted(others), called


def start(program, late, workers, origin, folder):
    path = os.path.join(folder, "plugway.toml")
    with open(path, "w") as file:
        file.write(MANIFEST.format(workers=workers, origin=origin, late=late))
    child, ports = subprocess.Popen([program, "run", path], stderr=subprocess.PIPE, text=True), {}
    for line in child.stderr:
        if found := re.search(r"(listening|admin) at http://127.0.0.1:(\d+)", line):
            ports[found[1]] = int(found[2])
        if len(ports) == 2:
            break
    log = os.open(os.path.join(folder, "log"), os.O_CREAT | os.O_WRONLY)
    subprocess.Popen(["cat"], stdin=child.stderr, stdout=log)
    return child, ports["listening"], ports["admin"]


def failures(admin):
    """Returns how many calls of the plugin failed."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics") as page:
        found = re.search(r'plugway_plugin_failures_total\{plugin="late"\} (\d+)', page.read().decode())
    return int(found[1])


async def main():
    program, late = sys.argv[1], os.path.abspath(sys.argv[2])
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 12
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    origin = server.sockets[0].getsockname()[1]
    print("| workers | requests/s | quiet p99 | spinning: p99 | ratio | 45 ms: p99 | ratio | calls |")
    print("|---|---|---|---|---|---|---|---|")
    for workers in (1, 2):
        for rate in (100, 400):
            row, made = [], []
            for how in (None, "spin", "busy:45"):
                with tempfile.TemporaryDirectory() as folder:
                    child, port, admin = start(program, late, workers, origin, folder)
                    others, called = await load(port, rate, seconds, how)
                    called += await asyncio.to_thread(failures, admin)
                    child.kill()
                    child.wait()
                row.append(others[int(len(others) * 0.99)] * 1000)
                made.append(called)
            quiet, spin, busy = row
            print(
                f"| {workers} | {rate} | {quiet:.1f} ms | {spin:.1f} ms | {spin / quiet:.1f} | {busy:.1f} ms "
                f"| {busy / quiet:.1f} | {made[1]}, {made[2]} |",
                flush=True,
            )


asyncio.run(main())
