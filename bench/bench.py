#!/usr/bin/env python3
"""Reverse-proxy benchmark: CPU per request of each proxy, interleaved, on loopback. See README.md."""
import argparse, contextlib, http.client, json, os, platform, re, resource, shlex, shutil, signal, socket, ssl
import statistics, subprocess, sys, tempfile, threading, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
HOME = Path(os.environ.get("BENCH_HOME", Path(tempfile.gettempdir()) / "proxy-bench"))  # filled by setup.sh
PROXY_CPU, LOAD_CPU = os.environ.get("BENCH_PROXY_CPU", "0"), os.environ.get("BENCH_LOAD_CPU", "1")
TICK = 1e6 / os.sysconf("SC_CLK_TCK")
DEVNULL = subprocess.DEVNULL


def which(name):
    path = shutil.which(name, path=f"{HOME}/bin:{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if not path:
        raise RuntimeError(f"{name} is not installed")
    return path


def free_ports(n):
    socks = [socket.socket() for _ in range(n)]
    for s in socks:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in socks]
    for s in socks:
        s.close()
    return ports


def render(text, flags, values):
    """Templates: %if a b+c !d,e / %end keep lines by flag; @NAME@ is replaced."""
    def holds(term):
        return not flags & set(term[1:].split(",")) if term[0] == "!" else set(term.split("+")) <= flags
    out, keep = [], True
    for line in text.splitlines():
        if line.startswith("%if "):
            keep = any(holds(t) for t in line.split()[1:])
        elif line.startswith("%end"):
            keep = True
        elif keep:
            out.append(line)
    return re.sub(r"@([A-Z0-9]+)@", lambda m: str(values[m[1]]), "\n".join(out)) + "\n"


# ---- /proc accounting ----
def stat_fields(pid):
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rpartition(")")[2].split()


def tree(roots):
    kids = {}
    for p in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            kids.setdefault(int(stat_fields(p)[1]), []).append(int(p))
    todo, seen = list(roots), []
    while todo:
        seen.append(todo.pop())
        todo += kids.get(seen[-1], [])
    return seen


def cpu_us(roots):
    """utime+stime of the tree, plus what its reaped children used."""
    total = 0
    for p in tree(roots):
        with contextlib.suppress(OSError):
            total += sum(map(int, stat_fields(p)[11:15]))
    return total * TICK


def memory_kib(roots):
    """(proportional set size now, sum of per-process peak RSS)"""
    pss = peak = 0
    for p in tree(roots):
        with contextlib.suppress(OSError):
            pss += int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{p}/smaps_rollup").read_text(), re.M)[1])
            peak += int(re.search(r"^VmHWM:\s+(\d+)", Path(f"/proc/{p}/status").read_text(), re.M)[1])
    return pss, peak


def machine_busy_us():
    f = list(map(int, open("/proc/stat").readline().split()[1:9]))
    return (sum(f) - f[3] - f[4]) * TICK  # all but idle and iowait; includes steal


class Quiet:
    """Waits, within a budget for the whole run, until other work leaves the machine alone."""
    def __init__(self, patience, limit):
        self.left, self.limit = patience, limit

    def wait(self):
        while self.left > 0:
            busy, start = machine_busy_us(), time.time()
            time.sleep(0.3)
            if (machine_busy_us() - busy) / (time.time() - start) / 1e6 / os.cpu_count() < self.limit:
                return
            time.sleep(0.7)
            self.left -= time.time() - start


# ---- processes ----
class Env:
    """Origin, certificate and temp dir shared by a whole run."""
    def __init__(self, workers, pin):
        self.tmp, self.workers, self.pin = Path(tempfile.mkdtemp(prefix="bench-")), workers, pin
        self.origins = free_ports(3)
        self.cert, self.key, self.pem = (self.tmp / n for n in ("cert.pem", "key.pem", "both.pem"))
        subprocess.run([which("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-keyout", self.key, "-out", self.cert, "-days", "9", "-subj", "/CN=localhost",
                        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"], check=True, stderr=DEVNULL)
        self.pem.write_bytes(self.cert.read_bytes() + self.key.read_bytes())
        for name, kib in (("cache/64k", 64), ("cache/1m", 1024), ("big/1m", 1024), ("big/100m", 102400)):
            path = self.tmp / "www" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(1024) * kib)
        site = self.tmp / "site"
        site.mkdir()
        for name, size in FILES.items():
            (site / name).write_bytes(os.urandom(size))
        (site / "networks").write_text("".join(f"10.{n >> 8}.{n & 255}.0/25\n" for n in range(2000)))
        self.tmp.chmod(0o755)
        conf = self.tmp / "origin.conf"
        conf.write_text(render((HERE / "peers/origin/origin.conf").read_text(), set(), dict(
            TMP=self.tmp, MODULES=nginx_modules(), KB="x" * 1024, **{f"O{i + 1}": p for i, p in enumerate(self.origins)})))
        self.origin = self.spawn([which("nginx"), "-e", self.tmp / "origin.log", "-c", conf], LOAD_CPU)
        wait_port(self.origins[0], self.origin)

    def spawn(self, argv, cpu, log=None, **kw):
        pin = ["taskset", "-c", cpu] if self.pin else []
        out = open(log, "w") if log else DEVNULL
        return subprocess.Popen(pin + [str(a) for a in argv], stdout=out, stderr=subprocess.STDOUT,
                                stdin=DEVNULL, start_new_session=True, **kw)

    def close(self):
        stop(self.origin)
        shutil.rmtree(self.tmp, ignore_errors=True)


def wait_port(port, proc, timeout=20):
    end = time.time() + timeout
    while time.time() < end:
        if proc.poll() is not None:
            raise RuntimeError(f"exited with {proc.returncode}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.05)
    raise RuntimeError("did not listen in time")


def stop(proc):
    """Ends one process we started and its own descendants, by pid."""
    pids = tree([proc.pid])
    if proc.poll() is None:
        proc.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            proc.wait(0.5)
    for p in pids:
        if p != proc.pid or proc.poll() is None:
            with contextlib.suppress(OSError):
                os.kill(p, signal.SIGKILL)
    proc.wait()


# ---- peers: subclass, give `conf`, `variants` and argv() ----
class Peer:
    conf = None       # template file under peers/<name>/
    variants = {}     # scenario -> list of variants ("" = the only one); default for all in `base`
    base = "plain plain-c1 rewrite lb lc cache1k cache64k tls handshake h2 big1m big100m upload idle idle-tls".split()

    def __init__(self, env):
        self.env, self.name, self.dir = env, type(self).__name__.lower(), HERE / "peers" / type(self).__name__.lower()

    def cases(self, scenario):
        return self.variants.get(scenario, [""] if scenario in self.base else [])

    def start(self, scenario, variant):
        """-> (url, [pids])"""
        env = self.env
        self.tmp = Path(tempfile.mkdtemp(prefix=self.name, dir=env.tmp))
        self.port, port2 = free_ports(2)
        flags = {scenario, variant, *SCENARIOS[scenario].get("flags", "").split()}
        self.values = dict(PORT=self.port, PORT2=port2, TMP=self.tmp, DIR=self.dir, WORKERS=env.workers, CERT=env.cert,
                           KEY=env.key, PEM=env.pem, SITE=env.tmp / "site", WASM=HOME / "wasm", GUESTS=ROOT / "target/guests/wasm32-wasip2/guest", MODULES=nginx_modules(),
                           **{f"O{i + 1}": p for i, p in enumerate(env.origins)})
        self.tls = bool(flags & {"tls", "h2"})
        if self.conf:
            self.file = self.tmp / self.conf
            self.file.write_text(render((self.dir / self.conf).read_text(), flags, self.values))
        self.log = self.tmp / "log"
        argv = self.argv(scenario, flags)
        self.proc = env.spawn(argv, PROXY_CPU, self.log, env={**os.environ, **self.environ()})
        wait_port(self.port, self.proc)
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}", [self.proc.pid]

    def environ(self):
        return {"HOME": str(self.tmp)}

    def reload(self):
        os.kill(self.proc.pid, signal.SIGHUP)

    def stop(self):
        stop(self.proc)


def nginx_modules():
    text = subprocess.run([which("nginx"), "-V"], stderr=subprocess.PIPE, text=True).stderr
    return re.search(r"--modules-path=(\S+)", text)[1]


class Nginx(Peer):
    conf = "nginx.conf"
    variants = {"cache1k": [""], "cache64k": [""], "cachedisk1m": [""], "reload": [""], "script": ["lua", "njs", "map"],
                "files1k": [""], "files64k": [""], "files10m": [""],
                "platform": ["lua", "lua-shared", "auth-request", "lua-capture"], "bodies1k": ["lua", "lua-body"],
                "bodies1m": ["lua", "lua-body"],
                **{s: ["", "tuned"] for s in ("big1m", "big100m", "upload")},
                **{f"chain{n}": ["lua", "njs"] for n in (0, 1, 3)}}

    def argv(self, scenario, flags):
        return [which("nginx"), "-e", self.tmp / "nginx.log", "-c", self.file]


class Haproxy(Peer):
    conf = "haproxy.cfg"
    variants = {"cache1k": [""], "cache64k": [""], "reload": [""], "script": ["acl", "lua"],
                **{f"chain{n}": ["lua"] for n in (0, 1, 3)}}

    def argv(self, scenario, flags):
        return [which("haproxy"), "-W", "-db", "-f", self.file]

    def reload(self):
        os.kill(self.proc.pid, signal.SIGUSR2)


class Envoy(Peer):
    conf = "envoy.yaml"
    variants = {"cache1k": [""], "cache64k": [""], "script": ["wasm", "lua"],
                **{f"chain{n}": ["wasm", "lua"] for n in (0, 1, 3)}}

    def argv(self, scenario, flags):
        return [which("envoy"), "-c", self.file, "--concurrency", self.env.workers, "--disable-hot-restart", "-l", "error"]


class Caddy(Peer):
    conf = "Caddyfile"
    variants = {"script": ["map"], "reload": [""]}

    def argv(self, scenario, flags):
        return [which("caddy"), "run", "--config", self.file, "--adapter", "caddyfile"]

    def environ(self):
        return {"HOME": str(self.tmp), "GOMAXPROCS": str(self.env.workers), "XDG_CONFIG_HOME": str(self.tmp), "XDG_DATA_HOME": str(self.tmp)}

    def reload(self):
        subprocess.run([which("caddy"), "reload", "--force", "--adapter", "caddyfile", "--config", self.file,
                        "--address", f"127.0.0.1:{self.values['PORT2']}"], check=True, stdout=DEVNULL, stderr=DEVNULL)


class Varnish(Peer):
    conf = "default.vcl"
    base = "plain plain-c1 rewrite lb big1m big100m upload idle".split()
    variants = {"cache1k": [""], "cache64k": [""], "script": ["vcl"], "reload": [""],
                **{f"chain{n}": ["vcl"] for n in (0, 1, 3)}}

    def argv(self, scenario, flags):
        return [which("varnishd"), "-F", "-j", "none", "-n", self.tmp / "n", "-a", f"127.0.0.1:{self.port}", "-f", self.file,
                "-s", "malloc,1g", "-p", "thread_pools=1", "-p", "timeout_idle=300", "-p", "thread_pool_max=6000"]

    def reload(self):
        name = f"v{time.time_ns()}"
        for cmd in (["vcl.load", name, self.file], ["vcl.use", name]):
            subprocess.run([which("varnishadm"), "-n", self.tmp / "n", *cmd], check=True, stdout=DEVNULL)


class Pingora(Peer):
    variants = {"cache1k": [""], "cache64k": [""], "script": ["rust"], "lc": [], **{f"chain{n}": ["rust"] for n in (0, 1, 3)}}

    def argv(self, scenario, flags):
        env = self.env
        mode = "tls" if self.tls else "cache" if "cache" in flags else scenario
        ups = env.origins if "lb" in flags else env.origins[:1]
        return [which("pingora-min"), mode, f"127.0.0.1:{self.port}", env.workers, ",".join(f"127.0.0.1:{p}" for p in ups),
                env.cert, env.key]


class Plugway(Peer):
    """`call` makes the stock plugin `headers` run for each message instead of handing the host a plan; `edit` has the
    trivial filter make its edit itself instead of naming a plan. The variants of `stock` are stock plugins."""
    conf = "plugway.toml"
    base = "plain plain-c1 rewrite lb lc cache1k cache64k cachedisk1m tls handshake h2 big1m big100m upload idle idle-tls reload files1k files64k files10m".split()
    stock = "none ip-filter auth-key cors body-limit security-headers request-id".split()
    variants = {s: ["", "call"] for s in ("plain", "rewrite")} | {"stock": stock} | {"script": ["wasm"], "chain0": ["wasm"], "chain1": ["wasm", "edit"], "chain3": ["wasm", "edit"]} | {
        "platform": ["none", "shared", "callout"], "bodies1k": ["none", "body"], "bodies1m": ["none", "body"]}

    def argv(self, scenario, flags):
        return [os.environ.get("PLUGWAY", ROOT / "target/dist/plugway"), "run", self.file]


PEERS = {c.__name__.lower(): c for c in (Nginx, Haproxy, Envoy, Caddy, Varnish, Pingora, Plugway)}

# ---- scenarios: path, connections, load tool, extra template flags, extra headers ----
KEY = {"x-api-key": "key-gamma"}
SCENARIOS = {
    "plain": {}, "plain-c1": dict(conns=1, flags="plain"),
    "rewrite": dict(headers={"X-Debug": "1"}),
    "lb": dict(flags="lb"), "lc": dict(flags="lb lc"),
    "cache1k": dict(path="/cache/1k", flags="cache"), "cache64k": dict(path="/cache/64k", flags="cache"),
    "cachedisk1m": dict(path="/cache/1m", conns=16, flags="cache disk"),
    "tls": dict(flags="tls"), "handshake": dict(flags="tls", headers={"Connection": "close"}),
    "h2": dict(flags="h2", tool="h2load"),
    "script": dict(headers=KEY),
    "stock": dict(headers={**KEY, "Origin": "https://app.example.org"}),
    "files1k": dict(path="/files/1k", flags="files"), "files64k": dict(path="/files/64k", flags="files"),
    "files10m": dict(path="/files/10m", conns=8, flags="files big"),
    "chain0": {}, "chain1": {}, "chain3": {},
    "platform": {}, "bodies1k": {}, "bodies1m": dict(path="/big/1m", conns=16, flags="big"),
    "big1m": dict(path="/big/1m", conns=16, flags="big"), "big100m": dict(path="/big/100m", conns=4, flags="big"),
    "upload": dict(path="/upload", conns=4, body=10 << 20, flags="big"),
    "idle": dict(tool="idle"), "idle-tls": dict(tool="idle", flags="tls"),
    "reload": dict(tool="reload"),
}
ALIASES = {"cache": "cache1k,cache64k", "chain": "chain0+chain1+chain3", "big": "big1m,big100m,upload", "bodies": "bodies1k,bodies1m"}
FILES = {"1k": 1 << 10, "64k": 64 << 10, "10m": 10 << 20}
CLIENT = {"User-Agent": "bench/1.0", "Accept": "*/*", "Accept-Language": "en"}


def fetch(url, path, headers=None):
    host = url.partition("://")[2]
    conn = (http.client.HTTPSConnection(host, context=ssl._create_unverified_context(), timeout=10)
            if url.startswith("https") else http.client.HTTPConnection(host, timeout=10))
    conn.request("GET", path, headers={"Host": "example.test", **CLIENT, **(headers or {})})
    resp = conn.getresponse()
    body = resp.read()
    conn.close()
    return resp.status, {k.lower(): v for k, v in resp.getheaders()}, body


def verify(scenario, url):
    """The proxy must do the work before it is timed on it."""
    def need(ok, what):
        if not ok:
            raise RuntimeError(f"wrong behaviour: {what}")
    spec = SCENARIOS[scenario]
    if "cache" in spec.get("flags", ""):
        ids = [fetch(url, spec["path"])[1].get("x-fetch") for _ in range(3)]
        return need(ids[1] and ids[1] == ids[2], f"not cached {ids}")
    if "files" in spec.get("flags", ""):
        size = len(fetch(url, spec["path"])[2])
        return need(size == FILES[spec["path"].rpartition("/")[2]], f"{size} bytes")
    status, head, body = fetch(url, "/echo", {"X-Debug": "1", **KEY})
    need(status == 200, f"status {status}")
    got = json.loads(body)
    need(got["host"] == "example.test", "host")
    need(got["x-real-ip"] == "127.0.0.1" and got["x-forwarded-for"], "x-real-ip/x-forwarded-for")  # envoy: own IP for loopback
    need(got["x-forwarded-proto"] == url.partition(":")[0], "x-forwarded-proto")
    if scenario == "rewrite":
        need(got["x-env"] == "bench" and got["x-forwarded-host"] == "example.test" and not got["x-debug"], "request edits")
        need(head.get("x-frame-options") == "DENY" and "x-powered-by" not in head, "response edits")
    if scenario == "script":
        need(got["x-user"] == "carol" and head.get("x-filter") == "1", "x-user/x-filter")
        for bad in ({}, {"x-api-key": "nope"}):
            status, head, body = fetch(url, "/echo", bad)
            need(status == 401 and "json" in head.get("content-type", "") and json.loads(body)["error"], f"reject: {status} {head}")
    if scenario.startswith("chain"):
        n = int(scenario[5:])
        need([got[f"x-f{i}"] for i in (1, 2, 3)] == ["1"] * n + [""] * (3 - n), "chain headers")
    if "lb" in spec.get("flags", ""):
        seen = {fetch(url, "/")[1].get("x-origin") for _ in range(24)}
        need(len(seen) == 3, f"only {len(seen)} origins used")


def wrk(env, scenario, url, secs):
    spec = SCENARIOS[scenario]
    head = sum((["-H", f"{k}: {v}"] for k, v in {**CLIENT, **spec.get("headers", {})}.items()), [])
    body = [str(spec["body"])] if "body" in spec else []
    pin = ["taskset", "-c", LOAD_CPU] if env.pin else []
    out = subprocess.run(pin + [which("wrk"), "-t1", f"-c{spec.get('conns', 64)}", f"-d{secs}s", "--timeout", "10s",
                                "-s", HERE / "wrk.lua", *head, url + spec.get("path", "/"), "--", *body],
                         check=True, text=True, stdout=subprocess.PIPE).stdout
    r = json.loads(re.search(r"^JSON (.*)", out, re.M)[1])
    r["errors"] = sum(r[k] for k in ("connect", "read", "write", "status", "timeout"))
    r["bytes"] = max(r["bytes"], r["requests"] * spec.get("body", 0))
    return r


def h2load(env, scenario, url, secs):
    log = env.tmp / "h2load.log"
    log.unlink(missing_ok=True)
    head = sum((["-H", f"{k}: {v}"] for k, v in CLIENT.items()), [])
    pin = ["taskset", "-c", LOAD_CPU] if env.pin else []
    out = subprocess.run(pin + [which("h2load"), "-t1", "-c10", "-m10", "-D", str(secs), f"--log-file={log}", *head, url + "/"],
                         check=True, text=True, stdout=subprocess.PIPE).stdout
    if "Application protocol: h2" not in out:
        raise RuntimeError("h2 was not negotiated")
    total, ok = map(int, re.search(r"requests: (\d+) total.* (\d+) succeeded", out).groups())
    lat = sorted(int(line.split()[2]) for line in log.read_text().splitlines())
    us = 1e6 * secs
    return dict(requests=ok, bytes=0, us=us, p50=lat[len(lat) // 2], p99=lat[len(lat) * 99 // 100], max=lat[-1], errors=total - ok)


def idle(env, scenario, url, pids, count=5000):
    """Proportional set size before and with `count` idle keep-alive connections, each of which did one request."""
    wrk(env, "plain", url, 1)
    time.sleep(1)
    before = memory_kib(pids)[0]
    host, port = url.rpartition("/")[2].split(":")
    ctx, socks = ssl._create_unverified_context(), []
    for _ in range(count):
        s = socket.create_connection((host, int(port)), 10)
        if url.startswith("https"):
            s = ctx.wrap_socket(s)
        s.sendall(b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n")
        data = b""
        while b"xxxx" not in data or len(data) < 1024:
            data += s.recv(65536)
        socks.append(s)
    time.sleep(1)
    after = memory_kib(pids)[0]
    for s in socks:
        s.close()
    return dict(conns=count, before_kib=before, after_kib=after, kib_per_conn=(after - before) / count)


def reloading(env, url, peer, secs=10):
    result, failed = {}, []
    load = threading.Thread(target=lambda: result.update(wrk(env, "plain", url, secs)))
    load.start()
    for _ in range(secs - 1):
        time.sleep(1)
        try:
            peer.reload()
        except Exception as e:
            failed.append(str(e))
    load.join()
    return {**result, "reloads": secs - 1 - len(failed)}


def measure(env, peer, scenario, variant, secs, warm, quiet):
    """One fresh start of one proxy, verified, warmed up and measured."""
    tool = SCENARIOS[scenario].get("tool", "wrk")
    try:
        url, pids = peer.start(scenario, variant)
        verify(scenario, url)
        if tool == "idle":  # memory only: needs no quiet
            return idle(env, scenario, url, pids)
        if tool == "reload":
            wrk(env, scenario, url, 1)
        load = {"h2load": h2load, "wrk": wrk}.get(tool)
        if load:
            load(env, scenario, url, warm)
        quiet.wait()
        own = lambda: cpu_us([env.origin.pid]) + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) * 1e6 + sum(
            resource.getrusage(resource.RUSAGE_SELF)[:2]) * 1e6
        c0, o0, m0, t0 = cpu_us(pids), own(), machine_busy_us(), time.time()
        r = load(env, scenario, url, secs) if load else reloading(env, url, peer)
        wall = (time.time() - t0) * 1e6
        cpu, rest, busy = cpu_us(pids) - c0, own() - o0, machine_busy_us() - m0
        r.update(cpu_us=cpu, us_per_req=cpu / max(r["requests"], 1), rps=r["requests"] * 1e6 / r["us"], busy=cpu / wall,
                 us_per_mib=cpu / max(r["bytes"] / 2**20, 1), mib_s=r["bytes"] / 2**20 / (r["us"] / 1e6),
                 foreign=max(0, busy - cpu - rest) / wall / os.cpu_count(), peak_rss_kib=memory_kib(pids)[1])
        return r
    except Exception as e:
        log = peer.log.read_text(errors="replace")[-600:] if getattr(peer, "log", None) and peer.log.exists() else ""
        return {"failed": f"{type(e).__name__}: {e}", "log": log}
    finally:
        if hasattr(peer, "proc"):
            peer.stop()


def run(args):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    names = args.peers.split(",")
    scen = ",".join(ALIASES.get(s, s) for s in args.scenarios.split(","))
    env = Env(args.workers, not args.unpinned)
    quiet = Quiet(args.patience, args.max_foreign)
    results, meta = [], dict(versions=versions(), kernel=platform.release(), cpus=os.cpu_count(), workers=args.workers,
                             pinned=not args.unpinned, seconds=args.seconds, max_foreign=args.max_foreign, started=time.strftime("%F %T"))
    try:
        for group in scen.split(","):
            dead = set()
            for rnd in range(args.rounds):
                for scenario in group.split("+"):
                    for i, name in enumerate(names):
                        for variant in PEERS[name](env).cases(scenario):
                            label = (f"{name}-{variant}" if variant else name) + "#2" * (name in names[:i])
                            if (scenario, label) in dead or args.only and label not in args.only.split(","):
                                continue
                            tries = []
                            while len(tries) < args.tries:  # again when other work on the machine disturbed it
                                tries.append(measure(env, PEERS[name](env), scenario, variant, args.seconds, args.warm, quiet))
                                if tries[-1].get("foreign", 0) < args.max_foreign:
                                    break
                            r = min(tries, key=lambda t: t.get("foreign", 0))
                            results.append(dict(scenario=scenario, peer=label, round=rnd, tries=len(tries), **r))
                            if "failed" in r:
                                dead.add((scenario, label))
                            print(time.strftime("%T"), scenario, rnd, label, {k: round(v, 2) if isinstance(v, float) else v for k, v in r.items() if k in (
                                "us_per_req", "rps", "p99", "busy", "foreign", "errors", "failed", "log", "kib_per_conn", "mib_s")}, file=sys.stderr, flush=True)
                            if args.json:
                                Path(args.json).write_text(json.dumps(dict(meta=meta, runs=results), indent=1))
    finally:
        env.close()
    print(report(dict(meta=meta, runs=results)))


def versions():
    out = {}
    for name, cmd in dict(nginx="nginx -v", haproxy="haproxy -v", envoy="envoy --version", caddy="caddy version",
                          varnish="varnishd -V", wrk="wrk -v", h2load="h2load --version").items():
        with contextlib.suppress(RuntimeError):
            exe, *rest = cmd.split()
            text = subprocess.run([which(exe), *rest], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
            out[name] = text.strip().splitlines()[0].replace(which(exe), "").strip()
    lock = (HERE / "peers/pingora/Cargo.lock").read_text()
    return {**out, "pingora": re.search(r'name = "pingora"\nversion = "(.*?)"', lock)[1]}


def report(data):
    """Markdown: median [min-max], and the median of per-round ratios to the reference peer, over the clean runs (those
    that other work left alone); where a peer has none, over all its runs, marked *."""
    med, lines = statistics.median, []
    runs = data["runs"]
    for scenario in dict.fromkeys(r["scenario"] for r in runs):
        rs = [r for r in runs if r["scenario"] == scenario]
        labels = list(dict.fromkeys(r["peer"] for r in rs))
        ref = next((p for p in ("nginx", "nginx-lua") if p in labels), labels[0])
        big, idle = "big" in SCENARIOS[scenario].get("flags", ""), SCENARIOS[scenario].get("tool") == "idle"
        unit = "us_per_mib" if big else "kib_per_conn" if idle else "us_per_req"
        lines += [f"\n### {scenario}\n"]
        lines += ([f"| peer | KiB/conn | x {ref} | min/min | before MiB | with conns MiB |", "|---|---|---|---|---|---|"] if idle else
                  [f"| peer | {'CPU us/MiB' if big else 'CPU us/req'} [min-max] | x {ref} | min/min | {'MiB/s' if big else 'req/s'} | p50 us | p99 us | busy % | peak RSS MiB | errors | foreign % |",
                   "|---|---|---|---|---|---|---|---|---|---|---|"])
        good, mark = {}, {}
        for p in labels:
            ok = [r for r in rs if r["peer"] == p and "failed" not in r]
            clean = [r for r in ok if r.get("foreign", 0) <= data["meta"].get("max_foreign", 0.1)]
            good[p], mark[p] = clean or ok, "" if clean else "*"
        base = {r["round"]: r[unit] for r in good[ref]}
        for p in labels:
            ok = good[p]
            if not ok:
                why = next(r["failed"] for r in rs if r["peer"] == p)
                lines.append(f"| {p} | failed: {why} |")
                continue
            m = lambda k: med(r[k] for r in ok)
            v = [r[unit] for r in ok]
            ratio = base and ([r[unit] / base[r["round"]] for r in ok if r["round"] in base] or [med(v) / med(base.values())])
            x = f"{med(ratio):.2f} | {min(v) / min(base.values()):.2f}" if ratio else "- | -"
            main = f"{med(v):.1f}{mark[p]} [{min(v):.1f}-{max(v):.1f}] n={len(v)}"
            lines.append(f"| {p} | {main} | {x} | {m('before_kib') / 1024:.1f} | {m('after_kib') / 1024:.1f} |" if idle else
                         f"| {p} | {main} | {x} | {m('mib_s' if big else 'rps'):.0f} | {m('p50'):.0f} | {m('p99'):.0f} | {m('busy') * 100:.0f} | "
                         f"{m('peak_rss_kib') / 1024:.0f} | {sum(r['errors'] for r in ok)} | {m('foreign') * 100:.1f} |")
    lines += ["\n```", json.dumps(data["meta"], indent=1), "```"]
    return "\n".join(lines)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    sub = ap.add_subparsers(dest="cmd", required=True)
    r = sub.add_parser("run")
    r.add_argument("--peers", default="plugway,nginx,haproxy,envoy,caddy,varnish,pingora", help="a name given twice runs A/A")
    r.add_argument("--only", help="exact labels, such as nginx-lua,envoy-wasm")
    r.add_argument("--scenarios", default="plain,rewrite,lb,cache,script,chain,tls,handshake,h2",
                   help=f"comma list; a+b interleaves a and b; {', '.join(SCENARIOS)}, {', '.join(ALIASES)}")
    r.add_argument("--rounds", type=int, default=3)
    r.add_argument("--seconds", type=int, default=5)
    r.add_argument("--warm", type=int, default=1)
    r.add_argument("--workers", type=int, default=1)
    r.add_argument("--unpinned", action="store_true")
    r.add_argument("--max-foreign", type=float, default=0.10, help="share of the machine other work may take in a clean run")
    r.add_argument("--tries", type=int, default=2, help="measure a disturbed run up to so often, keep the cleanest")
    r.add_argument("--patience", type=float, default=120, help="seconds, in all, to wait for a quiet machine before measuring")
    r.add_argument("--json")
    p = sub.add_parser("report")
    p.add_argument("json", nargs="+", help="several are merged")
    args = ap.parse_args()
    if args.cmd == "run":
        return run(args)
    data = [json.loads(Path(f).read_text()) for f in args.json]
    runs = [{**r, "round": f"{i}.{r['round']}"} for i, d in enumerate(data) for r in d["runs"]]
    print(report(dict(meta=data[-1]["meta"], runs=runs)))


if __name__ == "__main__":
    main()
