# Two commands matter: `make demo` and `make test`. Each sets up what it needs, or says exactly what is missing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup parts build generate check test unit lab recovery demo demo-env demo-down bench clean

TARGET := x86_64-unknown-linux-gnu
LAB = target/$(TARGET)/ci/warren-lab

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install the Debian packages and Rust components that the other targets use (root), or say what is missing
	@./e2e/setup.sh

parts: setup ## build Kubernetes, etcd, Helm and the CNI plugins from their Go modules, once per version
	@./e2e/tools/build.sh

build: setup ## build static binaries for the images, and the lab
	@CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static" \
	  cargo build --locked --profile ci --target $(TARGET) -p operator -p node-agent -p relay -p e2e --bins

generate: ## write the CustomResourceDefinitions from the Rust types
	@cargo run --locked -q -p crds --bin warren-crds -- crds/generated
	@cargo run --locked -q -p crds --bin warren-crds -- charts/warren/files/crds

check: setup ## formatting, lints, docs, licences, purity, drift of generated files
	@./e2e/check.sh

unit: setup ## tests of every crate, network namespaces included (root)
	@./e2e/stages.sh unit

test: ## everything: check, build, unit tests, lab tests on a real cluster
	@./e2e/stages.sh check parts build unit lab

lab: ## the tests on a real cluster behind real NATs
	@./e2e/stages.sh parts build lab

recovery: ## the long tests: agents, nodes, addresses and the control plane go and come back
	@./e2e/stages.sh parts build recovery

demo: parts build ## a real cluster behind real NATs, with Warren as its only network
	@$(LAB) demo

demo-env: ## print exports for KUBECONFIG and PATH: eval "$$(make -s demo-env)"
	@$(LAB) env

demo-down: ## end the demo and leave nothing behind
	@$(LAB) down

bench: parts build ## measured figures, as ratios against a reference in the same run
	@target/$(TARGET)/ci/warren-bench all

clean: demo-down ## remove what was built here (the cache in ~/.cache/warren stays)
	@cargo clean
