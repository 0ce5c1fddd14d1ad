#!/usr/bin/env bash
# Gives every target of this crate to libFuzzer, which is guided by the code that its inputs reach. Ends with an error at the first input
# that breaks a promise, and says where it is.
#
# Usage: crates/fuzz/run.sh [TARGET...]     default: all
#   FUZZ_RUNS   executions of each target at least; default 10,000,000
#   FUZZ_JOBS   processes beside each other; default one a core
# What a run finds worth keeping goes to the cache and is the start of the next; the committed corpus is read and not written.
set -euo pipefail
cd "$(dirname "$0")"
cache=${WARREN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/warren}
runs=${FUZZ_RUNS:-10000000}
jobs=${FUZZ_JOBS:-$(nproc)}
(($#)) || set -- $(cd libfuzzer/fuzz_targets && basename -s .rs ./*.rs)

export PATH=$cache/tools/bin:$PATH
command -v cargo-fuzz >/dev/null || cargo install --locked --quiet --root "$cache/tools" cargo-fuzz@0.13.2
command -v c++ >/dev/null || {
	echo "missing: a C++ compiler, which libFuzzer is built with: apt-get install g++" >&2
	exit 1
}
# Without a sanitizer the stable compiler does: none of the code under test is unsafe.
fuzz=(cargo fuzz run --fuzz-dir libfuzzer --target-dir "${CARGO_TARGET_DIR:-../../target}/fuzz" --sanitizer none)
summary=()
for target; do
	printf '\n== %s\n' "$target"
	found=$cache/fuzz/$target
	log=$(mktemp)
	mkdir -p "$found"
	start=$SECONDS
	pids=()
	for ((job = 0; job < jobs; job++)); do
		"${fuzz[@]}" "$target" "$found" "corpus/$target" -- -runs=$(((runs + jobs - 1) / jobs)) -max_len=4096 -timeout=10 \
			-print_final_stats=1 -verbosity=1 >>"$log" 2>&1 &
		pids+=($!)
	done
	code=0
	for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
	if ((code)); then
		tail -n 40 "$log" >&2
		echo "$target: failed; the input is below $PWD/libfuzzer/artifacts/$target" >&2
		exit "$code"
	fi
	executed=$(awk '/stat::number_of_executed_units/ {sum += $2} END {print sum}' "$log")
	covered=$(grep -oE 'cov: [0-9]+' "$log" | sort -k2 -n | tail -n 1)
	summary+=("$(printf '%-16s %12s executions %6d s   %s' "$target" "$executed" $((SECONDS - start)) "$covered")")
	rm -f "$log"
done
printf '\n'
printf '%s\n' "${summary[@]}"
