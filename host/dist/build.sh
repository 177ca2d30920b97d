#!/bin/sh
# Builds the release: the program, and target/dist/plugway-VERSION-TRIPLE.tar.gz with all that a package needs.
#
#   host/dist/build.sh             by a profile (PGO): half an hour on two cores, of which a minute is the measured work:
#                                  the benchmark's own scenarios. Needs nginx with its Lua module, wrk and h2load
#                                  (bench/setup.sh has the packages).
#   host/dist/build.sh --plain     without a profile: a third of the time, and a sixth more CPU time per request.
set -eu
cd "$(dirname "$0")/../.."
triple=$(rustc -vV | sed -n 's/^host: //p')
built=target/profiled/$triple/dist/plugway
dist=$PWD/target/dist

# For one triple by name: then the flags are for the proxy alone, and not for what builds it. The symbols are kept until
# they have a file of their own.
build() {
  RUSTFLAGS="$1" CARGO_PROFILE_DIST_STRIP=none cargo build --locked --profile dist --package plugway \
    --target "$triple" --target-dir target/profiled
}

build_by_profile() {
  rustup component add llvm-tools
  tools=$(rustc --print sysroot)/lib/rustlib/$triple/bin
  profile=$PWD/target/profile
  cargo build --profile guest --target wasm32-wasip2 --target-dir target/guests \
    --package bench-apikey --package bench-addheader --package bench-callout --package bench-shared --package bench-body
  rm -rf "$profile"
  build "-Cprofile-generate=$profile"
  rm -rf "$profile" # What the build itself may have left there.
  LLVM_PROFILE_FILE="$profile/%p.profraw" PLUGWAY=$built python3 bench/bench.py run --peers plugway \
    --rounds 1 --seconds 2 --tries 1 --patience 0 \
    --scenarios plain+rewrite+lb+lc+script+chain3+cache1k+cache64k+cachedisk1m+tls+handshake+h2+big1m+upload+platform+bodies1k+bodies1m
  "$tools/llvm-profdata" merge -o target/plugway.profdata "$profile"
  build "-Cprofile-use=$PWD/target/plugway.profdata"
}

case "${1:-}" in
  "") build_by_profile ;;
  --plain) build "" ;;
  *) echo "usage: host/dist/build.sh [--plain]" >&2; exit 2 ;;
esac

# The program without symbols, and its symbols in a file that debuggers find beside it.
install -D "$built" "$dist/plugway"
objcopy --only-keep-debug "$dist/plugway" "$dist/plugway.debug"
objcopy --strip-all --add-gnu-debuglink="$dist/plugway.debug" "$dist/plugway"

version=$("$dist/plugway" --version | cut -d' ' -f2)
name=plugway-$version-$triple
folder=$dist/$name
rm -rf "$folder"
install -D "$dist/plugway" "$folder/bin/plugway"
install -d "$folder/share/man/man1" "$folder/share/completions" "$folder/lib/systemd/system" "$folder/etc/plugway"
"$dist/plugway" man --out "$folder/share/man/man1"
gzip -9n "$folder/share/man/man1"/*
for shell in bash zsh fish; do "$dist/plugway" completions "$shell" > "$folder/share/completions/plugway.$shell"; done
cp host/dist/plugway.service "$folder/lib/systemd/system/"
cp host/dist/plugway.toml "$folder/etc/plugway/"
cp README.md CHANGELOG.md SECURITY.md LICENSE-APACHE LICENSE-MIT "$folder/"
cp -r docs "$folder/share/"
python3 host/dist/licences.py > "$folder/LICENSES-OF-DEPENDENCIES"

# The same input gives the same archive.
pack() {
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" -C "$dist" -c "$1" | gzip -9n
}
pack "$name" > "$dist/$name.tar.gz"
pack plugway.debug > "$dist/$name-debug.tar.gz"
rm -rf "$folder"
(cd "$dist" && sha256sum "$name.tar.gz" "$name-debug.tar.gz" > "$name.sha256")
ls -l "$dist/plugway" "$dist/$name.tar.gz" "$dist/$name-debug.tar.gz"
