#!/usr/bin/env bash
# Checks the chart with a real Helm and without a cluster: what it renders, and which values it refuses.
# Usage: charts/test.sh [HELM_BINARY]
set -euo pipefail
helm=${1:-helm}
chart=$(cd "$(dirname "$0")" && pwd)/warren
out=$(mktemp)
trap 'rm -f "$out" "$out.err"' EXIT

fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
say() { printf -- '-- %s\n' "$*"; }

# rendered NAME ARGUMENT...: lints and renders with these values; what follows looks at the result.
rendered() {
	name=$1
	shift
	say "$name"
	"$helm" lint --strict --quiet "$chart" "$@" >"$out" 2>&1 || fail "$name: helm lint said: $(cat "$out")"
	"$helm" template warren "$chart" -n warren-system "$@" >"$out" 2>"$out.err" || fail "$name: $(cat "$out.err")"
}
# has N TEXT: exactly N lines contain this text.
has() {
	local found
	found=$(grep -cF -- "$2" "$out" || true)
	[ "$found" = "$1" ] || fail "$name: expected $1 lines with: $2, found $found"
}
# refused WHERE ARGUMENT...: the schema names this value as wrong.
refused() {
	local where=$1
	shift
	say "refused: $*"
	if "$helm" template warren "$chart" "$@" >"$out" 2>&1; then fail "accepted: $*"; fi
	grep -qF -- "$where" "$out" || fail "$*: expected a complaint about $where, found: $(cat "$out")"
}

# A line of a pod template that says which chart made it would restart every pod with every new chart.
steady_pods() {
	if grep -nE '^ {8,}(helm\.sh/chart|app\.kubernetes\.io/version):' "$out"; then fail "$name: pods carry the label above"; fi
}

rendered "defaults"
has 4 "kind: CustomResourceDefinition"
has 4 "helm.sh/resource-policy: keep"
has 3 "kind: ValidatingAdmissionPolicyBinding"
has 0 "KUBERNETES_SERVICE_HOST"
has 0 "--api-server="
has 0 "--mesh-defaults="
has 0 "privileged: true"
has 1 "add: [NET_ADMIN, NET_RAW]"
has 1 "mountPath: /host/cni/net.d"
has 2 'host: "127.0.0.1"'
has 2 "port: 21813"
has 1 "tolerationSeconds: 300"
has 1 "tolerationSeconds: 60"
has 1 "- --state-dir=/var/lib/warren-relay"
has 1 "- --relay-port=51900"
has 1 "- --relay-ports=64"
has 1 "- --quic-port=51899"
has 1 "- --tls-port=8443"
has 1 "- --relay-tls-port=443"
has 1 "- --relay-placement=auto"
has 1 "userInfo.username == \"system:serviceaccount:warren-system:warren-operator\""
has 1 "- --drain-seconds=3"
has 1 "resources: [meshrelays, meshnodes]"
has 1 "{name: state, mountPath: /var/lib/warren-relay}"
steady_pods

rendered "beside another CNI" --set cni.mode=none
has 1 "--cni-mode=none"
has 0 "/host/cni/net.d, readOnly"
has 0 "mountPath: /host/cni"
has 0 "/etc/cni/net.d\""

rendered "relays where labels say" --set relay.placement=Label
has 1 "- --relay-placement=label"
has 0 "warren-operator-labels.warren.dev"

rendered "without relays" --set relay.enabled=false
has 1 "- --relay-tls-port=0"
has 0 "name: relay"
has 0 "resources: [meshrelays/status]"

rendered "relay ports elsewhere" --set relay.relayPort=20000 --set relay.relayPorts=8 --set relay.quicPort=443 --set relay.tls.listenPort=443 --set relay.tls.port=0 --set relay.drainSeconds=30
has 1 "- --relay-port=20000"
has 1 "- --relay-ports=8"
has 1 "- --quic-port=443"
has 1 "- --tls-port=443"
has 1 "- --relay-tls-port=0"
has 1 "terminationGracePeriodSeconds: 32"

rendered "without CRDs" --set crds.install=false
has 0 "kind: CustomResourceDefinition"

rendered "one address of the API" --set k8sServiceHost=192.0.2.10 --set k8sServicePort=443
has 1 "--api-server=192.0.2.10:443"
has 4 'value: "192.0.2.10"'
has 4 'value: "443"'

rendered "several addresses of the API" --set 'k8sServiceHost={fd00::10,192.0.2.11,api.example.com}'
has 1 "--api-server=[fd00::10]:6443"
has 1 "--api-server=192.0.2.11:6443"
has 1 "--api-server=api.example.com:6443"
has 4 'value: "fd00::10"'
has 0 'value: "192.0.2.11"'

rendered "an empty list of addresses" --set-json k8sServiceHost=[]
has 0 "KUBERNETES_SERVICE_HOST"

rendered "a Mesh spec with everything that YAML could misread" --set-json 'mesh.spec={"a":"it is: #1 {x} \"q\" '\''s'\''","podCIDRs":["10.244.0.0/16"]}'
has 1 '- "--mesh-defaults={\"a\":\"it is: #1 {x} \\\"q\\\" '\''s'\''\",\"podCIDRs\":[\"10.244.0.0/16\"]}"'

rendered "metrics off and elsewhere" --set agent.metricsListen=off --set operator.metricsListen=none --set 'relay.metricsListen=[::]:9000'
has 1 "--metrics-listen=off"
has 1 "--metrics-listen=none"
has 2 'host: "::1"'
has 2 "port: 9000"

rendered "folders of k3s" --set cni.confDir=/var/lib/rancher/k3s/agent/etc/cni/net.d --set cni.binDir=/var/lib/rancher/k3s/data/cni
has 1 '{path: "/var/lib/rancher/k3s/agent/etc/cni/net.d", type: DirectoryOrCreate}'
has 1 '{path: "/var/lib/rancher/k3s/data/cni", type: DirectoryOrCreate}'

rendered "another registry and tag" --set image.repository=registry.example.com:5000/warren --set image.tag=v1 --set 'image.pullSecrets[0].name=s'
has 3 "image: registry.example.com:5000/warren/agent:v1"
has 1 "image: registry.example.com:5000/warren/operator:v1"
has 1 "image: registry.example.com:5000/warren/relay:v1"
has 5 "imagePullSecrets:"

for host in host:6443 192.0.2.10:6443 '[fd00::1]' https://192.0.2.10 192.0.2.10/ 'a b' '192.0.2.10\,192.0.2.11' 300.0.0.1 fd00::1::2 -a.example; do
	refused k8sServiceHost --set "k8sServiceHost=$host"
done
rendered "a proxy to relays" --set agent.relayProxy.url=http://proxy.example:3128 --set agent.relayProxy.credentialsSecret=proxy \
	--set 'agent.relayProxy.except=192.0.2.7\,10.0.0.0/8'
has 1 '"--relay-proxy=http://proxy.example:3128"'
has 1 '"--no-proxy=192.0.2.7,10.0.0.0/8"'
has 1 "- --relay-proxy-credentials=/proxy/credentials"
has 1 'secret: {secretName: "proxy", defaultMode: 0400}'

refused relayProxy --set agent.relayProxy.url=http://user:secret@proxy.example:3128
refused k8sServiceHost --set 'k8sServiceHost={192.0.2.10,192.0.2.11:6443}'
refused k8sServicePort --set k8sServicePort=70000
refused k8sServicPort --set k8sServicPort=6443
refused agent --set agent.metricsListen=none
refused operator --set operator.metricsListen=off
refused relay --set relay.metricsListen=off
refused relayPorts --set relay.relayPorts=257
refused quicPort --set relay.quicPort=0
refused placement --set relay.placement=auto
refused port --set relay.tls.port=70000
refused tlsPort --set relay.tlsPort=8443
refused mode --set cni.mode=flannel
refused confDir --set cni.confDir=etc/cni/net.d
refused replicas --set operator.replicas=0
refused logFormat --set agent.logFormat=xml
say "the chart is as it should be"
