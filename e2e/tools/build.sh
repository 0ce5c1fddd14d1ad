#!/usr/bin/env bash
# Builds the real cluster parts (Kubernetes, etcd, Helm, CNI plugins) from their Go modules.
# Usage: build.sh. Prints the folder with the binaries, which is in the user's cache and named after the versions.
# Finished binaries are kept, so an interrupted build goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")"
cache=${WARREN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/warren}
out=$cache/parts/$(cat go.mod go.sum build.sh cmd/*/*.go <(go version) | sha256sum | cut -c1-16)
mkdir -p "$out"
exec 9>"$cache/parts/.lock"
flock 9
export GOMODCACHE=$cache/go/mod GOCACHE=$cache/go/build CGO_ENABLED=0

version() { go list -m -f '{{.Version}}' "$1"; }
k8s=$(version k8s.io/kubernetes)
helm=$(version helm.sh/helm/v3)
minor=${k8s#v1.}
minor=${minor%%.*}

# A binary built from a module calls itself v0.0.0-master unless told its version; clients and servers compare these.
stamp=k8s.io/component-base/version
k8s_flags="-X $stamp.gitVersion=$k8s -X $stamp.gitMajor=1 -X $stamp.gitMinor=$minor -X $stamp.gitTreeState=clean"
k8s_flags+=" -X k8s.io/client-go/pkg/version.gitVersion=$k8s"
helm_flags="-X helm.sh/helm/v3/internal/version.version=$helm"
for package in chartutil lint/rules; do
	helm_flags+=" -X helm.sh/helm/v3/pkg/$package.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/$package.k8sVersionMinor=$minor"
done

build() { # path below OUT_DIR, package, linker flags
	[ ! -x "$out/$1" ] || return 0
	printf 'building %s\n' "$1" >&2
	go build -p 2 -trimpath -ldflags "-s -w ${3:-}" -o "$out/$1.part" "$2"
	mv "$out/$1.part" "$out/$1"
}

build etcd ./cmd/etcd
for name in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
	build "$name" "k8s.io/kubernetes/cmd/$name" "$k8s_flags"
done
build helm helm.sh/helm/v3/cmd/helm "$helm_flags"
for plugin in main/bridge main/loopback main/ptp ipam/host-local meta/portmap; do
	build "cni/${plugin#*/}" "github.com/containernetworking/plugins/plugins/$plugin"
done
echo "$out"
