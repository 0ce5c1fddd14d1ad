#!/usr/bin/env bash
# Builds the agent and its tests statically and runs them in a machine whose kernel has WireGuard, one machine each.
#
# Usage: e2e/kernel/agent.sh [TEST...]     default: two_nodes kernel_lane carried_devices bells
#   WARREN_TEST_ARGS  arguments for the test programs, separated by spaces; default --nocapture --test-threads=1
set -euo pipefail
cd "$(dirname "$0")/../.."
target=x86_64-unknown-linux-gnu
(($#)) || set -- two_nodes kernel_lane carried_devices bells
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static"
built=$(cargo test --locked -q --profile ci --no-run --message-format=json -p node-agent --target $target --bin=warren-agent "${@/#/--test=}")
executable() { # kind, name; of the agent the program itself and not its tests
	grep -F "\"kind\":[\"$1\"]" <<<"$built" | grep -F "\"name\":\"$2\"" |
		sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | grep -v "/deps/warren_agent" | tail -n 1
}
WARREN_GUEST_FILES=$(executable bin warren-agent)
export WARREN_GUEST_FILES
code=0
read -ra arguments <<<"${WARREN_TEST_ARGS:---nocapture --test-threads=1}"
for name; do
	printf '== node-agent %s\n' "$name"
	start=$SECONDS
	./e2e/kernel/run.sh "$(executable test "$name")" "${arguments[@]}" || code=$?
	printf '== node-agent %s: %d s\n' "$name" $((SECONDS - start))
done
exit $code
