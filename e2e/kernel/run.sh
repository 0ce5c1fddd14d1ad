#!/usr/bin/env bash
# Runs a static program as root in a small virtual machine whose kernel has WireGuard, netem and the rest, and ends as
# the program does: same output, same exit status. For machines whose own kernel lacks them.
#
# Usage: e2e/kernel/run.sh PROGRAM [ARGUMENT...]
#        e2e/kernel/run.sh --prepare     installs QEMU and fetches the kernel, or says why that can't be
#   PROGRAM is linked statically (-C target-feature=+crt-static --target x86_64-unknown-linux-gnu).
#   WARREN_GUEST_TIMEOUT  seconds after which the machine is stopped; default 600
#   WARREN_GUEST_ENV      names of variables to hand on to the program, separated by spaces
#   WARREN_GUEST_FILES    static programs that PROGRAM starts, separated by spaces; each comes along to the same place
#   WARREN_GUEST_PACK     a folder: kernel and initramfs go there, and no machine is started
#   WARREN_CACHE          where the kernel is kept
# Ends with 124 when the time is over and with 125 when the machine crashed; both show its console.
#
# There is no disk and no network: the kernel, its modules, a few programs of this machine and PROGRAM are one
# initramfs. TCG emulates (KVM inside of containers and other machines hangs or is missing); a boot takes about 3 s.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${WARREN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/warren}/kernel
export PATH=$PATH:/usr/sbin:/sbin

# What the tests run, beside busybox (whose shell prefers its own programs to those). Their libraries come along.
programs=(dash ip nft pgrep ping pkill tc wg)
# What the tests need of the kernel, and may not be built in. Dependencies come along.
modules=(
	wireguard tun veth bridge dummy sch_netem
	nf_tables nft_chain_nat nft_masq nft_nat nft_ct nft_limit nft_reject_inet nft_fib_inet nf_conntrack_netlink
	virtio_pci virtio_net virtio_console virtio_blk
)

say() { printf 'kernel lane: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 125
}

# The package that Debian's current kernel of this kind is in; nothing if apt has never heard of it.
current_package() {
	apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image-/ {print $2; exit}'
}

# Prints the folder of the kernel: vmlinuz and lib/modules/VERSION. The newest that is cached; else Debian's current
# one, unpacked there. It is never installed: nothing boots from it.
kernel() {
	local newest package partial
	newest=$(find "$cache" -mindepth 1 -maxdepth 1 -name '*-cloud-amd64' 2>/dev/null | sort -V | tail -n 1)
	if [ -z "$newest" ]; then
		package=$(current_package)
		if [ -z "$package" ] && [ "$(id -u)" = 0 ]; then
			apt-get update -q >/dev/null || true
			package=$(current_package)
		fi
		[ -n "$package" ] || die "apt knows no package linux-image-cloud-amd64: apt-get update"
		newest=$cache/${package#linux-image-}
		newest=${newest%-unsigned}
		say "unpacking $package into $newest"
		# Beside its place and renamed, so that nobody uses half of it.
		mkdir -p "$cache"
		partial=$(mktemp -d "$cache/.partial.XXXXXX")
		if ! (cd "$partial" && apt-get download -q "$package" >/dev/null && dpkg -x ./*.deb . && rm ./*.deb); then
			rm -rf "$partial"
			die "the package $package can't be had"
		fi
		mv "$partial"/boot/vmlinuz-* "$partial/vmlinuz"
		depmod -b "$partial" "$(basename "$newest")"
		mv -T "$partial" "$newest" 2>/dev/null || rm -rf "$partial"
	fi
	echo "$newest"
}

# Copies files into the tree, each to the same place, with the libraries that they load.
copy() { # tree, files
	local tree=$1 file
	shift
	for file; do
		{
			echo "$file"
			ldd "$file" 2>/dev/null | grep -o '/[^ ]*' || true
		} | while read -r part; do
			[ -e "$tree$part" ] || install -D "$(readlink -f "$part")" "$tree$part"
		done
	done
}

# Builds the initramfs.
pack() { # kernel folder, output, program, arguments
	local kernel=$1 output=$2 program=$3 tree version module name bundle
	shift 3
	tree=$work/tree
	version=$(basename "$kernel")
	mkdir -p "$tree"/{bin,dev,proc,sys,run,tmp,etc,lib/modules/"$version"}
	install "$here/init" "$tree/init"
	install "$(command -v busybox)" "$tree/bin/busybox"
	for name in busybox "${programs[@]}"; do copy "$tree" "$(command -v "$name")"; done
	for module in "${modules[@]}"; do
		modprobe -d "$kernel" -S "$version" --show-depends "$module" >"$work/depends" || die "kernel $version has no module $module"
		awk '$1 == "insmod" {print $2}' "$work/depends"
	done | sort -u | while read -r module; do
		install -D -m 644 "$module" "$tree/lib/modules/$version/${module#"$kernel/lib/modules/$version/"}"
	done
	cp "$kernel/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$tree/lib/modules/$version/"
	depmod -b "$tree" "$version"
	# Names for backtraces stay, what a debugger wants is ten times the rest.
	strip --strip-debug -o "$tree/program" "$program"
	for name in ${WARREN_GUEST_FILES:-}; do
		install -D "$name" "$tree$name"
		strip --strip-debug "$tree$name"
	done
	# A TLS client asks for some, whether or not it is going to use them.
	bundle=/etc/ssl/certs/ca-certificates.crt
	[ ! -e "$bundle" ] || install -D -m 644 "$bundle" "$tree$bundle"
	printf '%s\n' "${modules[@]}" >"$tree/modules"
	{
		printf 'export WARREN_KERNEL_LANE=1 REQUIRE_LAB=1 RUST_BACKTRACE=1\n'
		for name in ${WARREN_GUEST_ENV:-}; do printf 'export %s=%q\n' "$name" "${!name-}"; done
		printf 'exec /program'
		(($# == 0)) || printf ' %q' "$@"
		printf '\n'
	} >"$tree/command"
	(cd "$tree" && find . | cpio -o -H newc --quiet) >"$output"
}

(($#)) || die "usage: run.sh PROGRAM [ARGUMENT...]"
"$here/../setup.sh" kernel >&2 || die "the virtual machine needs what is missing"
folder=$(kernel)
[ "$1" != --prepare ] || exit 0
[ -x "$1" ] || die "$1 is no program"
if ldd "$1" 2>&1 | grep -q '=>'; then die "$1 is not linked statically"; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pack "$folder" "$work/initramfs" "$@"
if [ -n "${WARREN_GUEST_PACK:-}" ]; then
	mv "$work/initramfs" "$WARREN_GUEST_PACK/initramfs"
	cp "$folder/vmlinuz" "$WARREN_GUEST_PACK/vmlinuz"
	exit 0
fi

# Three serial ports: the kernel's console, what the program prints, and how it ended. One thread emulates both processors: with one
# each, QEMU 7.2 now and then goes on with code that Linux has patched meanwhile, and both hang at the breakpoint that was there.
limit=${WARREN_GUEST_TIMEOUT:-600}
code=0
timeout --signal=KILL "$limit" qemu-system-x86_64 -M q35 -accel tcg,thread=single -cpu max -smp 2 -m 1024 \
	-nodefaults -no-user-config -display none -no-reboot \
	-serial "file:$work/console" -serial stdio -serial "file:$work/status" \
	-kernel "$folder/vmlinuz" -initrd "$work/initramfs" \
	-append "console=ttyS0 panic=-1 oops=panic mitigations=off quiet" </dev/null || code=$?
status=$(cat "$work/status" 2>/dev/null || true)
if [[ $code = 0 && $status =~ ^exit=([0-9]+)$ ]]; then
	exit "${BASH_REMATCH[1]}"
fi
say "its console, the last 60 lines:"
tail -n 60 "$work/console" >&2 || true
if ((code == 137)); then
	say "the machine was stopped after $limit s"
	exit 124
fi
die "the machine ended without telling how the program did (qemu: $code)"
