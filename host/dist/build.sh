#!/bin/sh
# Builds target/dist/plugway as packages should have it: in one piece, its code laid out by what it was seen to do (PGO).
# Half an hour on two cores, of which a minute is the watched work: the benchmark's own scenarios, without their peers.
# Wants what they want: nginx with its Lua module as origin, wrk and h2load (setup.sh has the packages).
set -eu
cd "$(dirname "$0")/../.."
rustup component add llvm-tools
triple=$(rustc -vV | sed -n 's/^host: //p')
tools=$(rustc --print sysroot)/lib/rustlib/$triple/bin
seen=$PWD/target/seen
built=target/profiled/$triple/dist/plugway

# For one triple by name: then the flags are for the proxy alone, and not for what builds it.
build() {
  RUSTFLAGS="$1" cargo build --profile dist --package plugway --target "$triple" --target-dir target/profiled
}

cargo build --profile guest --target wasm32-wasip2 --target-dir target/guests --package bench-apikey --package bench-addheader
rm -rf "$seen"
build "-Cprofile-generate=$seen"
rm -rf "$seen" # What the build itself may have left there.
LLVM_PROFILE_FILE="$seen/%p.profraw" PLUGWAY=$built python3 bench/bench.py run --peers plugway \
  --rounds 1 --seconds 2 --tries 1 --patience 0 \
  --scenarios plain+rewrite+lb+lc+script+chain3+cache1k+cache64k+cachedisk1m+tls+handshake+h2+big1m+upload
"$tools/llvm-profdata" merge -o target/plugway.profdata "$seen"
build "-Cprofile-use=$PWD/target/plugway.profdata"
install -D "$built" target/dist/plugway
