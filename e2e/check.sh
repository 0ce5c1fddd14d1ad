#!/usr/bin/env bash
# What must hold of the sources before any test runs. `make check` and CI run the same.
set -euo pipefail
cd "$(dirname "$0")/.."
pure=(wire path topology)
impure='tokio|mio|async-std|kube|kube-client|k8s-openapi|nlink|nix|libc|socket2|rustix|reqwest|hyper|rand|getrandom|gotatun'

say() { printf -- '-- %s\n' "$*"; }
say "formatting"
cargo fmt --all --check
say "lints"
cargo clippy --locked --workspace --all-targets -- -D warnings
say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items --quiet
say "generated files"
cargo run --locked -q -p crds --bin warren-crds -- --check crds/generated
cargo run --locked -q -p crds --bin warren-crds -- --check charts/warren/files/crds
say "pure crates stay pure"
for crate in "${pure[@]}"; do
	# First the list, then the search: a list that could not be made must not pass for one without findings.
	tree=$(cargo tree --locked -q -p "$crate" -e normal --prefix none --target wasm32-unknown-unknown)
	if awk '{print $1}' <<<"$tree" | grep -xE "$impure"; then
		echo "$crate must not depend on the crates above: pure crates name no runtime, socket, clock or cluster" >&2
		exit 1
	fi
done
# The relay's decisions are a module beside its shell, so their sources are read instead.
if grep -rnE "Instant::now|SystemTime|tokio|nix::|socket2|udpsock|std::(fs|thread|process|env)|HashMap|getrandom" relay/src/server relay/src/server.rs; then
	echo "relay/src/server decides and nothing else: time and randomness are arguments, sockets and files are the shell's" >&2
	exit 1
fi
if rustup target list --installed 2>/dev/null | grep -qx wasm32-unknown-unknown || rustup target add wasm32-unknown-unknown >/dev/null 2>&1; then
	cargo build --locked -q --target wasm32-unknown-unknown "${pure[@]/#/-p}"
elif [ "${REQUIRE_LAB:-}" = 1 ]; then
	echo "no wasm32 target on this machine and none to be had, so nothing shows that ${pure[*]} build without a system: rustup target add wasm32-unknown-unknown" >&2
	exit 1
else
	echo "   no wasm32 target on this machine and none to be had: the wasm32 build of ${pure[*]} was left out"
fi
say "licences, bans, sources"
if ! command -v cargo-deny >/dev/null 2>&1; then
	tools=${WARREN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/warren}/tools
	export PATH=$tools/bin:$PATH
	command -v cargo-deny >/dev/null 2>&1 || cargo install --debug --locked --quiet --root "$tools" cargo-deny@0.20.2
fi
cargo deny --log-level error check licenses bans sources
say "tests that documents name"
./e2e/named_tests.sh
say "shell scripts"
for script in e2e/*.sh e2e/tools/*.sh e2e/kernel/*.sh charts/*.sh crates/fuzz/run.sh .ci/run; do bash -n "$script"; done
