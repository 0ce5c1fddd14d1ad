#!/usr/bin/env bash
# Every test that the documents name as a proof (`path.rs::name`, and further names of that file after it) is there.
set -euo pipefail
cd "$(dirname "$0")/.."
missing=0
while IFS= read -r named; do
	file=${named#*\`}
	file=${file%%::*}
	# shellcheck disable=SC2016 # the backticks are Markdown's
	for name in $(grep -oE '(::|`)[a-z0-9_]+`' <<<"$named" | tr -d ':`'); do
		grep -qE "fn $name\b" "$file" 2>/dev/null || {
			echo "the documents name $file::$name, which is not there" >&2
			missing=1
		}
	done
done < <(grep -ohE '`[^` ]+\.rs::[a-z0-9_]+`(, `[a-z0-9_]+`)*' -- *.md docs/*.md docs/decisions/*.md | sort -u)
exit $missing
