#!/usr/bin/env bash
# Runs the named stages in order, stops at the first that fails, and says how long each took.
# Usage: stages.sh STAGE...   with STAGE one of: check parts build unit lab recovery
set -uo pipefail
cd "$(dirname "$0")/.."
summary=()

stage_check() { ./e2e/check.sh; }
stage_parts() { make -s parts; }
stage_build() { make -s build; }
stage_unit() {
	# The API scenarios of the operator use the real API server.
	WARREN_PARTS=$(./e2e/tools/build.sh) cargo test --locked --workspace --exclude e2e
}
# One cluster at a time: two cores carry no more.
lab_tests() { cargo test --locked -p e2e "${@/#/--test=}"; }
stage_lab() { cargo test --locked -p e2e --lib --bins && lab_tests lab demo single dual_stack nat_api trust; }
stage_recovery() { lab_tests recovery; }

finish() {
	printf '\n%s\n' "stage        seconds"
	printf '%s\n' "${summary[@]}"
}
trap finish EXIT
make -s setup-tests || exit 1
for stage in "$@"; do
	printf '\n== %s\n' "$stage"
	start=$SECONDS
	"stage_$stage"
	code=$?
	summary+=("$(printf '%-12s %6d%s' "$stage" $((SECONDS - start)) "$([ $code = 0 ] || echo '  FAILED')")")
	[ $code = 0 ] || exit $code
done
