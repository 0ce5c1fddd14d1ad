# Two commands matter: `make demo` and `make test`. Each sets up what it needs, or says exactly what is missing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help kernel-lane lifecycle guest-lane setup setup-tests parts build release images generate check test unit lab recovery faults sim punch fuzz demo demo-env demo-down bench bench-userspace bench-relay bench-kernel clean

TARGET := x86_64-unknown-linux-gnu
OUT = $(or $(CARGO_TARGET_DIR),target)/$(TARGET)
LAB = $(OUT)/ci/warren-lab
STATIC = CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static"

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install the Debian packages and Rust components that build and demo use (root), or say what is missing
	@./e2e/setup.sh

setup-tests: ## the same, with what tests and benchmarks use besides
	@./e2e/setup.sh tests

parts: setup ## build Kubernetes, etcd, Helm and the CNI plugins from their Go modules, once per version
	@./e2e/tools/build.sh

build: setup ## build static binaries for the images, and the lab
	@$(STATIC) cargo build --locked --profile ci --target $(TARGET) -p operator -p node-agent -p relay -p e2e --bins

release: setup ## build static release binaries of operator, agent and relay
	@$(STATIC) cargo build --locked --release --target $(TARGET) -p operator -p node-agent -p relay --bins

images: release build ## pack the release binaries into target/images for your own cluster
	@$(LAB) pack

generate: ## write the CustomResourceDefinitions from the Rust types
	@cargo run --locked -q -p crds --bin warren-crds -- crds/generated
	@cargo run --locked -q -p crds --bin warren-crds -- charts/warren/files/crds

check: setup-tests ## formatting, lints, docs, licences, purity, drift of generated files
	@./e2e/check.sh

unit: setup-tests ## tests of every crate, network namespaces included (root)
	@./e2e/stages.sh unit

test: ## everything: check, build, unit tests, the kernel's WireGuard in a virtual machine, lab tests on a real cluster
	@./e2e/stages.sh check parts build unit kernel lab recovery guest_short

sim: setup ## the long form of the simulation: 10,000 runs in each cell of the ordered punch
	@WARREN_SIM_PUNCH_SEEDS=10000 cargo test --locked --release -p sim --test punch -- --nocapture

punch: setup-tests ## the ordered punch on real Linux boxes in namespaces, RUNS=100 in each cell, beside ordinary probing: ten minutes (root)
	@PUNCH_RUNS=$(or $(RUNS),100) REQUIRE_LAB=1 cargo test --locked --workspace --test=punch_lab -- --nocapture

fuzz: setup ## every parser and the relay's state machine under libFuzzer: 10 million executions each (FUZZ_RUNS), some minutes
	@./crates/fuzz/run.sh

lab: ## the tests on a real cluster behind real NATs
	@./e2e/stages.sh parts build lab

kernel-lane: setup-tests ## all tests of the kernel's WireGuard, in a small virtual machine (installs QEMU)
	@./e2e/kernel/wgdev.sh
	@./e2e/kernel/agent.sh

guest-lane: ## nodes on the kernel's WireGuard, in a virtual machine, as members of the real cluster; an agent is away for ten minutes
	@GUEST_SECONDS=600 ./e2e/stages.sh parts build guest

recovery: ## the long form of the recovery tests: the control plane is gone for two minutes each time
	@RECOVERY_SECONDS=120 ./e2e/stages.sh parts build recovery

faults: ## what docs/faults.md tells, with its figures: an API that is too busy for ten minutes, etcd gone, nodes that come back alone
	@./e2e/stages.sh parts build faults

lifecycle: ## upgrade and rollback under traffic, what an uninstall leaves, beside another CNI, and without Kubernetes
	@./e2e/stages.sh parts build lifecycle

demo: parts build ## a real cluster behind real NATs, with Warren as its only network
	@$(LAB) demo

demo-env: ## print exports for KUBECONFIG and PATH: eval "$$(make -s demo-env)"
	@$(LAB) env

demo-down: ## end the demo and leave nothing behind
	@$(LAB) down

bench: setup-tests parts build ## measured figures, as ratios against a reference in the same run
	@$(OUT)/ci/warren-bench all

bench-userspace: setup-tests build ## the userspace device against wireguard-go, in full: a quarter of an hour
	@$(OUT)/ci/warren-bench userspace

bench-relay: setup-tests build ## what the relay forwards, beside the kernel's NAT and coturn: some minutes
	@$(OUT)/ci/warren-bench relay

bench-kernel: setup-tests ## what Warren costs the kernel's WireGuard: per datagram here, throughput in a virtual machine
	@./e2e/kernel/bench.sh

clean: ## end the demo, if one runs, and remove what was built here (the cache in ~/.cache/warren stays)
	@if [ -x $(LAB) ]; then $(LAB) down; fi
	@cargo clean
