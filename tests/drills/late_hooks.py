#!/usr/bin/env python3
"""Measures what plugins that are late in hooks of all kinds, each within its limit, cost other requests.

Usage: tests/drills/late_hooks.py PLUGWAY LATE.wasm [SECONDS]

For each kind, the p99 of requests on a route without a plugin is printed, at 100 and 400 requests a second and one worker:
quiet, and while 10 % of the requests go to a route with plugins whose hooks take 40 to 45 ms. The first second is left
out. Requests are sent on time, whether earlier ones were answered or not (open loop). The machine must be quiet for the
p99 to mean anything.
"""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time

MANIFEST = """
workers = 1
[[listener]]
address = "127.0.0.1:0"
[upstream.app]
endpoints = ["127.0.0.1:{origin}"]
[upstream.picked]
endpoints = ["127.0.0.1:{origin}", "localhost:{origin}"]
{balancer}
[[route]]
upstream = "app"
[[route]]
path = "/late"
upstream = "{upstream}"
plugins = [{chain}]
{plugins}
"""

# The configuration of the plugins, their number, the requests' `X-Late`, and what is added to requests.
KINDS = {
    "requests": ("", 1, "busy:45", b""),
    "10 plugins in a chain": ("", 10, "busy:45", b""),
    "10 plugins of 12 ms": ("", 10, "busy:12", b""),
    "timers": ('timer-interval = 50, timer = "busy:45"', 1, "", b""),
    "10 timers": ('timer-interval = 50, timer = "busy:45"', 10, "", b""),
    "observers": ('end = "busy:45"', 1, "", b""),
    "chunks": ('push = "busy:40"', 1, "", b"".join(b"1\r\nx\r\n" for _ in range(20)) + b"0\r\n\r\n"),
    "balancer": ('pick = "busy:45"', 0, "", b""),
    "slow configure, reloads": ("configure-busy = 45", 1, "", b""),
    "45 ms, reloads": ("", 1, "busy:45", b""),
}


async def answer(reader, writer):
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if b"chunked" in head.lower():
                while (await reader.readuntil(b"\r\n")) != b"0\r\n":
                    pass
                await reader.readuntil(b"\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        writer.close()


async def ask(port, path, how, content):
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    method, framing = ("POST", "Transfer-Encoding: chunked\r\n") if content else ("GET", "")
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\n{framing}X-Late: {how}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + content)
    line = await reader.readline()
    await reader.read()
    writer.close()
    return line.split()[1:2] == [b"200"], time.perf_counter() - began


async def load(port, rate, seconds, how, content, reload):
    """Returns the latencies of the other requests after the first second, and how many late ones were answered by 200."""
    began, tasks, reloaded = time.perf_counter(), [], 0
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0, began + number / rate - time.perf_counter()))
        if reload and number / rate >= reloaded + 2:
            reloaded = number / rate
            reload(number)
        is_late = how is not None and number % 10 == 0
        path = "/late" if is_late else "/"
        asked = ask(port, path, how if is_late else "", content if is_late else b"")
        tasks.append((number / rate, is_late, asyncio.create_task(asked)))
    others, passed = [], 0
    for at, is_late, task in tasks:
        if is_late:
            done, _ = await asyncio.wait([task], timeout=1)
            passed += bool(done) and task.exception() is None and task.result()[0]
            task.cancel()
            continue
        is_good, took = await task
        assert is_good
        if at >= 1:
            others.append(took)
    return sorted(others), passed


def start(program, text, folder):
    path = os.path.join(folder, "plugway.toml")
    with open(path, "w") as file:
        file.write(text)
    child = subprocess.Popen([program, "run", path], stderr=subprocess.PIPE, text=True)
    for line in child.stderr:
        if found := re.search(r"listening at http://127.0.0.1:(\d+)", line):
            break
    log = os.open(os.path.join(folder, "log"), os.O_CREAT | os.O_WRONLY)
    subprocess.Popen(["cat"], stdin=child.stderr, stdout=log)
    return child, int(found[1]), path


async def main():
    program, late = sys.argv[1], os.path.abspath(sys.argv[2])
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 12
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    origin = server.sockets[0].getsockname()[1]
    print("| kind | requests/s | quiet p99 | p99 | ratio | late requests with 200 |")
    print("|---|---|---|---|---|---|")
    for rate in (100, 400):
        quiet = None
        for kind, (config, count, how, content) in [("quiet", ("", 1, None, b"")), *KINDS.items()]:
            names = [f"p{number}" for number in range(count)]
            text = MANIFEST.format(
                origin=origin,
                chain=", ".join(f'"{name}"' for name in names),
                plugins="".join(f'[plugin.{n}]\nuse = "{late}"\nconfig = {{ {config} }}\non-error = 503\n' for n in names),
                upstream="app" if count else "picked",
                balancer="" if count else f'balancer = {{ use = "{late}", config = {{ {config} }} }}',
            )
            with tempfile.TemporaryDirectory() as folder:
                child, port, path = start(program, text, folder)

                def reload(number):
                    with open(path, "w") as file:
                        file.write(f"# {number}\n{text}")

                reloads = reload if "reloads" in kind else None
                others, passed = await load(port, rate, seconds, how, content, reloads)
                child.kill()
                child.wait()
            p99 = others[int(len(others) * 0.99)] * 1000
            quiet = quiet or p99
            print(f"| {kind} | {rate} | {quiet:.1f} ms | {p99:.1f} ms | {p99 / quiet:.1f} | {passed} |", flush=True)


asyncio.run(main())
