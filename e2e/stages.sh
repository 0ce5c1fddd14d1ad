#!/usr/bin/env bash
# Runs the named stages in order, stops at the first that fails, and says how long each took.
# Usage: stages.sh STAGE...   with STAGE one of: check parts build unit kernel lab recovery guest guest_short faults lifecycle
set -uo pipefail
cd "$(dirname "$0")/.."
summary=()
log=$(mktemp)

stage_check() { ./e2e/check.sh; }
stage_parts() { make -s parts; }
stage_build() { make -s build; }
stage_unit() {
	local tests
	tests=$(printf '%s\n' {crates/*,node-agent,operator,relay}/tests/*.rs | sed 's|.*/|--test=|; s|\.rs$||' | sort -u)
	WARREN_PARTS=$(./e2e/tools/build.sh) || return
	export WARREN_PARTS # the API scenarios of the operator use the real API server
	# shellcheck disable=SC2086 # one argument a test
	./charts/test.sh "$WARREN_PARTS/helm" && cargo test --locked --workspace --lib --bins $tests
}
stage_kernel() { ./e2e/kernel/short.sh; }
# One cluster at a time: two cores carry no more. --workspace, so that dependencies have the features, and the build, of the unit tests.
lab_tests() { cargo test --locked --workspace "${@/#/--test=}"; }
stage_lab() { lab_tests lab demo single dual_stack nat_api trust hard_nat paths plain; }
stage_recovery() { lab_tests recovery; }
stage_guest() { lab_tests guest; }
# What nothing else shows, in two minutes.
stage_guest_short() {
	cargo test --locked --workspace --test=guest -- helm_install guests_join two_nats agent_that_is_killed agent_that_is_upgraded \
		fault_1_api
}
stage_lifecycle() { lab_tests lifecycle other_cni external; }
stage_faults() {
	FAULT_SECONDS=600 cargo test --locked --workspace --test=agent_loop -- outages --nocapture &&
		FAULT_PAUSE=10 cargo test --locked --workspace --test=node_faults -- --nocapture &&
		FAULT_SECONDS=60 lab_tests faults
}

# Where a reader of the end alone finds it.
say_what_failed() {
	printf '\n== what failed in %s\n' "$1"
	grep -aE 'FAILED|panicked at|in vain|^error' "$2" | tail -n 15
}

finish() {
	rm -f "$log"
	printf '\n%s\n' "stage        seconds"
	printf '%s\n' "${summary[@]}"
}
trap finish EXIT
make -s setup-tests || exit 1
for stage in "$@"; do
	printf '\n== %s\n' "$stage"
	start=$SECONDS
	"stage_$stage" 2>&1 | tee "$log"
	code=${PIPESTATUS[0]}
	summary+=("$(printf '%-12s %6d%s' "$stage" $((SECONDS - start)) "$([ "$code" = 0 ] || echo '  FAILED')")")
	[ "$code" = 0 ] || { say_what_failed "$stage" "$log"; exit "$code"; }
done
