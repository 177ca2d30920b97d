#!/usr/bin/env python3
"""Upstreams of which most endpoints are dead: what the clients of the one that is well notice.

Run it on a quiet machine: `tests/drills/dead_endpoints.py target/release/plugway [requests]`. It starts endpoints and the
proxy on loopback, and prints one row for each case: requests that failed, the slowest of all, and the 99th percentile. The
endpoints refuse connections, never answer them (a listening socket whose queue is full), or answer 503. 503 is an answer
that is passed on by default; a second row says what `retry.on` and `outliers.statuses` make of it.
"""
import collections, http.client, multiprocessing, os, socket, subprocess, sys, tempfile, threading, time

CLIENTS = 16
SOUGHT = 'retry = { on = ["connect", "reset", 503] }\noutliers = { statuses = [503] }\n'


def endpoint(listener, answer):
    """Answers each request with the same bytes."""
    def serve(conn):
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = conn.makefile("rb")
        try:
            while reader.readline():
                while reader.readline() not in (b"\r\n", b""):
                    pass
                conn.sendall(answer)
        except OSError:
            pass
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


class Endpoints:
    """So many that are dead in one way, and one that is well."""
    def __init__(self, dead, how):
        self.sockets, self.processes, self.addresses = [], [], []
        for _ in range(dead):
            {"refusing": self.refusing, "silent": self.silent, "503": self.unavailable}[how]()
        self.serving(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def bound(self):
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        self.sockets.append(sock)
        self.addresses.append("127.0.0.1:%d" % sock.getsockname()[1])
        return sock

    def refusing(self):
        # Bound, so that no other program gets the port, but not listening.
        self.bound()

    def silent(self):
        sock = self.bound()
        sock.listen(0)
        for _ in range(4):
            queued = socket.socket()
            queued.setblocking(False)
            queued.connect_ex(sock.getsockname())
            self.sockets.append(queued)

    def unavailable(self):
        self.serving(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

    def serving(self, answer):
        listener = self.bound()
        listener.listen(4096)
        process = multiprocessing.Process(target=endpoint, args=(listener, answer), daemon=True)
        process.start()
        self.processes.append(process)

    def close(self):
        for process in self.processes:
            process.terminate()
            process.join()
        for sock in self.sockets:
            sock.close()


class Proxy:
    def __init__(self, binary, endpoints, more):
        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "plugway.toml")
        with open(path, "w") as manifest:
            manifest.write('workers = 2\n[admin]\naddress = "off"\n[[listener]]\naddress = "127.0.0.1:0"\n[[route]]\n'
                           f'upstream = "app"\n[upstream.app]\nendpoints = {endpoints}\n{more}'.replace("'", '"'))
        self.child = subprocess.Popen([binary, "run", path], stderr=subprocess.PIPE, text=True)
        while "listening at" not in (line := self.child.stderr.readline()):
            assert line, "the proxy did not start"
        self.port = int(line.split()[-1].rsplit(":", 1)[1].strip("/"))
        threading.Thread(target=self.child.stderr.read, daemon=True).start()

    def close(self):
        self.child.terminate()
        self.child.wait()


def ask(port, method, requests):
    """The outcome and the time of each of so many requests by many clients, each on one connection."""
    seen, left, lock = [], iter(range(requests)), threading.Lock()
    def client():
        conn = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                if next(left, None) is None:
                    return
            began = time.monotonic()
            try:
                conn.request(method, "/")
                response = conn.getresponse()
                response.read()
                outcome = response.status
            except (OSError, http.client.HTTPException) as error:
                conn.close()
                outcome = type(error).__name__
            seen.append((outcome, time.monotonic() - began))
    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    return seen


def main():
    binary, requests = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3000
    print(f"{'dead':10} {'how':10} {'manifest':10} {'method':6} {'failed':>7} {'p99 ms':>8} {'slowest ms':>11}  outcomes")
    cases = [(how, name, more) for how in ("refusing", "silent", "503") for name, more in (("default", ""), ("503 too", SOUGHT))
             if name == "default" or how == "503"]
    for how, name, more in cases:
        for dead, of in ((1, 2), (2, 3), (4, 5)):
            for method in ("GET", "POST"):
                endpoints = Endpoints(dead, how)
                proxy = Proxy(binary, endpoints.addresses, more)
                seen = ask(proxy.port, method, requests)
                proxy.close()
                endpoints.close()
                times = sorted(took * 1000 for _, took in seen)
                outcomes = collections.Counter(outcome for outcome, _ in seen)
                failed = len(seen) - outcomes[200]
                print(f"{dead} of {of:<5} {how:10} {name:10} {method:6} {failed:7} {times[len(times) * 99 // 100]:8.1f} "
                      f"{times[-1]:11.1f}  {dict(outcomes)}", flush=True)


main()
