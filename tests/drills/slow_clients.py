#!/usr/bin/env python3
"""Slow clients in front of gunicorn with one synchronous worker: how long the next request waits behind each.

Run it on a quiet machine: `tests/drills/slow_clients.py target/release/plugway [rounds]`. It needs nginx, and gunicorn in
`target/test-venv`: run `tests/run` first, which makes that folder. It starts gunicorn, the proxy as `plugway proxy --to`,
and nginx with its defaults, all on loopback. It prints one row for each case and proxy: the wait of a request that is sent
a second after the slow one has begun, the time of the slow one, and the memory of the proxy. Rounds alternate between the
proxies; the figures are medians.
"""
import http.client, os, socket, statistics, subprocess, sys, tempfile, threading, time

MIB = 1 << 20
SIZE = 64 * MIB
RATE = 8 * MIB
UPLOAD = MIB
UPLOAD_RATE = MIB // 4
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def until_open(port):
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.02)


def gunicorn(port):
    python = os.path.join(ROOT, "target/test-venv/bin/python")
    if not os.path.exists(python):
        sys.exit(f"there is no {python}: run tests/run first")
    arguments = ["-m", "gunicorn", "--timeout", "600", "--bind", f"127.0.0.1:{port}", "--chdir",
                 os.path.join(ROOT, "tests/support"), "wsgi:bulk"]
    return subprocess.Popen([python, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def nginx(folder, port, origin):
    path = os.path.join(folder, "nginx.conf")
    with open(path, "w") as conf:
        conf.write(f"""daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{ access_log off; client_max_body_size 64m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{origin}; }} }} }}
""")
    return subprocess.Popen(["/usr/sbin/nginx", "-c", path, "-p", folder], stderr=subprocess.DEVNULL)


def plugway(binary, port, origin):
    arguments = ["proxy", "--listen", f"127.0.0.1:{port}", "--to", f"127.0.0.1:{origin}"]
    return subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def paced(total, rate, step):
    """Calls `step(bytes)` at a rate."""
    began, done = time.monotonic(), 0
    while done < total:
        due = min(total, int((time.monotonic() - began) * rate) + 1)
        if due - done < min(16 << 10, total - done):
            time.sleep(0.002)
            continue
        done += step(due - done)
    return time.monotonic() - began


def download(port):
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 << 10)
    client.connect(("127.0.0.1", port))
    client.sendall(f"GET /{SIZE} HTTP/1.1\r\nHost: a\r\n\r\n".encode())

    def take(most):
        got = len(client.recv(min(most, 1 << 16)))
        assert got, "cut off"
        return got
    took = paced(SIZE, RATE, take)
    client.close()
    return took


def upload(port):
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(f"POST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: {UPLOAD}\r\n\r\n".encode())

    def send(most):
        client.sendall(b"x" * most)
        return most
    took = paced(UPLOAD, UPLOAD_RATE, send)
    assert b"200" in client.recv(1 << 10).split(b"\r\n")[0]
    client.close()
    return took


def memory(process):
    """Resident memory of a process and its children, in MiB."""
    family = [process.pid]
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    family += [int(child) for child in open(children).read().split()]
    kib = [line.split()[1] for pid in family for line in open(f"/proc/{pid}/status") if line.startswith("VmRSS")]
    return sum(map(int, kib)) / 1024


def measure(port, process, slow):
    took = []
    thread = threading.Thread(target=lambda: took.append(slow(port)))
    thread.start()
    time.sleep(1)
    began = time.monotonic()
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    client.request("GET", "/5")
    assert len(client.getresponse().read()) == 5
    waited = time.monotonic() - began
    resident = memory(process)
    thread.join()
    return waited, took[0], resident


def main():
    binary, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as folder:
        # Its worker may have dropped its privileges.
        os.chmod(folder, 0o777)
        origin = free_port()
        running = [gunicorn(origin)]
        until_open(origin)
        proxies = {}
        for name, start in [("plugway", lambda port: plugway(binary, port, origin)),
                            ("nginx", lambda port: nginx(folder, port, origin))]:
            port = free_port()
            running.append(start(port))
            until_open(port)
            proxies[name] = (port, running[-1])
        print("| slow client | proxy | next request waits | slow one takes | memory |\n|---|---|---|---|---|")
        for case, slow in [("none", lambda port: 0), ("download of 64 MiB at 8 MiB/s", download),
                           ("upload of 1 MiB at 256 KiB/s", upload)]:
            rows = {name: [] for name in proxies}
            for _ in range(rounds):
                for name, (port, process) in proxies.items():
                    rows[name].append(measure(port, process, slow))
            for name, got in rows.items():
                waited, took, resident = (statistics.median(column) for column in zip(*got))
                print(f"| {case} | {name} | {waited:.4f} s | {took:.1f} s | {resident:.0f} MiB |", flush=True)
        for process in running:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
