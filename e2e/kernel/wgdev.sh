#!/usr/bin/env bash
# Builds the tests of crates/wgdev statically and runs them in a machine whose kernel has WireGuard, one machine each.
#
# Usage: e2e/kernel/wgdev.sh [TEST...]     default: all but interop, which needs Go
#   WARREN_TEST_ARGS  arguments for the test programs, separated by spaces
set -euo pipefail
cd "$(dirname "$0")/../.."
target=x86_64-unknown-linux-gnu
(($#)) || set -- model history interrupted kernel kernel_port port strangers tunnel interface
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static"
built=$(cargo test --locked -q --profile ci --no-run --message-format=json -p wgdev --target $target "${@/#/--test=}")
code=0
read -ra arguments <<<"${WARREN_TEST_ARGS:-}"
for name; do
	program=$(grep -F "\"kind\":[\"test\"]" <<<"$built" | grep -F "\"name\":\"$name\"" |
		sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
	printf '== wgdev %s\n' "$name"
	start=$SECONDS
	./e2e/kernel/run.sh "$program" "${arguments[@]}" || code=$?
	printf '== wgdev %s: %d s\n' "$name" $((SECONDS - start))
done
exit $code
