#!/usr/bin/env bash
# Installs what the build and the demo use, or says exactly what is missing. Usage: setup.sh [tests|kernel]
#   tests   what tests and benchmarks use besides
#   kernel  what the virtual machine of the kernel lane uses, and nothing else
set -euo pipefail
missing=()

need() { # program, oldest version, the version found, what to do
	if [ -z "$3" ]; then
		missing+=("$1 $2 or newer: none was found; $4")
	elif [ "$(printf '%s\n' "$2" "$3" | sort -V | head -n 1)" != "$2" ]; then
		missing+=("$1 $2 or newer: $3 was found; $4")
	fi
}
found() { "$@" 2>/dev/null | grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' | head -n 1 || true; }
if [ "${1:-}" != kernel ]; then
	need cargo 1.95 "$(found cargo --version)" "install Rust with rustup"
	# Go fetches a newer toolchain by itself when a module asks for one; 1.21 is the first that can.
	need go 1.21 "$(found go version)" "install Go from Debian backports or its own site"
fi
for component in rustfmt clippy; do
	if [ "${1:-}" = tests ] && ! cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1; then
		rustup component add "$component" >/dev/null 2>&1 || missing+=("$component: rustup component add $component")
	fi
done

# program or file -> Debian package
packages=()
want() {
	command -v "$1" >/dev/null 2>&1 || [ -e "$1" ] || packages+=("$2")
}
export PATH=$PATH:/usr/sbin:/sbin
want nft nftables
want ip iproute2
if [ "${1:-}" = kernel ]; then
	want qemu-system-x86_64 qemu-system-x86
	want busybox busybox-static
	want cpio cpio
	want depmod kmod
	want strip binutils
	want ping iputils-ping
	want wg wireguard-tools
	want pgrep procps
	want mkfs.ext4 e2fsprogs
else
	want cc gcc
	want containerd containerd
	want runc runc
	want iptables iptables
	want conntrack conntrack
	want sysctl procps
	want nsenter util-linux
fi
if [ "${1:-}" = tests ]; then
	want turnutils_stunclient coturn
	want iperf3 iperf3
fi
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
		# coturn is here for its client alone.
		if [[ " ${packages[*]} " == *" coturn "* ]]; then systemctl disable coturn >/dev/null 2>&1 || true; fi
	else
		missing+=("Debian packages: apt-get install --no-install-recommends ${packages[*]}")
	fi
fi
if ((${#missing[@]})); then
	printf 'missing:\n' >&2
	printf '  %s\n' "${missing[@]}" >&2
	exit 1
fi
