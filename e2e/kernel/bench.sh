#!/usr/bin/env bash
# What Warren costs the kernel's WireGuard: per datagram on this machine's kernel, and in throughput in a machine whose kernel has
# WireGuard. Prints Markdown tables. Needs root.
#
# Usage: e2e/kernel/bench.sh [ROUNDS [SECONDS]]     of the throughput; default: 9 4
set -euo pipefail
cd "$(dirname "$0")/../.."
target=x86_64-unknown-linux-gnu
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static"
built=$(cargo test --locked -q --no-run --message-format=json --profile ci -p node-agent --target $target --bin=warren-agent \
	--bench=kernel_throughput --bench=packet_cost)
executable() { # kind, name; of the agent the program itself and not its tests
	grep -F "\"kind\":[\"$1\"]" <<<"$built" | grep -F "\"name\":\"$2\"" |
		sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | grep -v "/deps/warren_agent" | tail -n 1
}
load() { cut -d' ' -f1 /proc/loadavg; }
printf 'On %s, `e2e/kernel/bench.sh %s`: %s cores of %s, Linux %s; load average before it %s.\n\n' \
	"$(date -u '+%-d %B %Y')" "$*" "$(nproc)" "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)" "$(uname -r)" "$(load)"
"$(executable bench packet_cost)"
echo
WARREN_GUEST_FILES=$(executable bin warren-agent)
export WARREN_GUEST_FILES
./e2e/kernel/run.sh "$(executable bench kernel_throughput)" --rounds "${1:-9}" --seconds "${2:-4}"
