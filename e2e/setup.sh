#!/usr/bin/env bash
# Installs what the build, the tests and the demo use, or says exactly what is missing.
set -euo pipefail
missing=()

need() { # program, what to say when it is absent
	command -v "$1" >/dev/null 2>&1 || missing+=("$1: $2")
}
need cargo "install Rust 1.95 or newer with rustup"
need go "install Go 1.26 or newer"

# program or file -> Debian package
packages=()
want() {
	command -v "$1" >/dev/null 2>&1 || [ -e "$1" ] || packages+=("$2")
}
export PATH=$PATH:/usr/sbin:/sbin
want cc gcc
want containerd containerd
want runc runc
want nft nftables
want iptables iptables
want conntrack conntrack
want ip iproute2
want sysctl procps
want turnutils_stunclient coturn
want iperf3 iperf3
want setpriv util-linux
if ((${#packages[@]})); then
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
		echo "installing Debian packages: ${packages[*]}"
		apt-get update -q >/dev/null
		# No service is wanted: the lab starts its own containerd for every node.
		printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d.warren
		chmod +x /usr/sbin/policy-rc.d.warren
		if [ ! -e /usr/sbin/policy-rc.d ]; then
			ln -s policy-rc.d.warren /usr/sbin/policy-rc.d
			trap 'rm -f /usr/sbin/policy-rc.d' EXIT
		fi
		DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}" >/dev/null
		rm -f /usr/sbin/policy-rc.d.warren
	else
		missing+=("Debian packages: apt-get install --no-install-recommends ${packages[*]}")
	fi
fi
if ((${#missing[@]})); then
	printf 'missing:\n' >&2
	printf '  %s\n' "${missing[@]}" >&2
	exit 1
fi
