#!/usr/bin/env bash
# Builds flannel from its Go module, for the tests beside another CNI. Usage: flannel.sh. Prints the path of the program, which is in the
# user's cache under its version.
# Its main program links every backend. Two of them need what this build has not (udp: C; tencentvpc: a vendor's SDK) and the others but
# host-gw are not used, so main.go is built without them, and otherwise as it is.
set -euo pipefail
module=github.com/flannel-io/flannel version=v0.28.10
# Of the module's content, as go.sum has it.
sum=h1:jt+uW6XVV01MBb3YFahG7Ue9UE3W6zlNlJMf3JtdcXI=
cache=${WARREN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/warren}
out=$cache/flannel/flanneld-$version
if [ -x "$out" ]; then
	echo "$out"
	exit
fi
mkdir -p "$cache/flannel"
exec 9>"$cache/flannel/.lock"
flock 9
export GOMODCACHE=$cache/go/mod GOCACHE=$cache/go/build CGO_ENABLED=0
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
# Outside of any module, so that none of ours decides about versions.
cd "$copy"
described=$(go mod download -json "$module@$version")
field() { sed -n "s|^\t\"$1\": \"\(.*\)\",\{0,1\}$|\1|p" <<<"$described"; }
[ "$(field Sum)" = "$sum" ] || {
	echo "$module@$version has the sum $(field Sum), expected $sum" >&2
	exit 1
}
cp -r --no-preserve=mode "$(field Dir)/." "$copy"
sed -i "\|_ \"$module/pkg/backend/|{\|/hostgw\"|!d}" main.go
printf 'building flanneld %s\n' "$version" >&2
go build -p 2 -trimpath -ldflags "-s -w -X $module/pkg/version.Version=$version" -o "$out.part" .
mv "$out.part" "$out"
echo "$out"
