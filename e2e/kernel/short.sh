#!/usr/bin/env bash
# The kernel lane without what takes long or is tested on this machine anyway: what `make test` runs of it. `make kernel-lane`
# is all of it. A machine that can't have QEMU or the kernel says why and passes; with REQUIRE_LAB=1 it fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! ./e2e/kernel/run.sh --prepare; then
	if [ "${REQUIRE_LAB:-}" = 1 ]; then
		echo "REQUIRE_LAB=1, and the virtual machine with the kernel's WireGuard can't be had (see above)" >&2
		exit 1
	fi
	echo "skipped: the virtual machine with the kernel's WireGuard can't be had (see above)"
	exit 0
fi
# Four machines of twelve: what needs floods or hundreds of kills is for the long form, and the minute after which the port's sockets
# close as well.
WARREN_TEST_ARGS="--skip userspace:: --skip the_sockets_close" ./e2e/kernel/wgdev.sh model kernel kernel_port
WARREN_TEST_ARGS="--nocapture --test-threads=1" ./e2e/kernel/agent.sh two_nodes
