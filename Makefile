# What a person does with this checkout. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build lab test compose bench fuzz readme clean

# bin/toolchain is the Go that setup fetched where the system's is too old.
# Debian keeps nft where ordinary users do not look.
export PATH := $(CURDIR)/bin/toolchain/bin:$(PATH):/usr/local/sbin:/usr/sbin:/sbin

# Without a git that trusts this folder, go build would stop at the revision.
ifneq ($(shell git rev-parse --is-inside-work-tree 2>/dev/null),true)
export GOFLAGS := $(GOFLAGS) -buildvcs=false
endif

# Programs that nobody here wrote, which the tests and the experiments hold the
# protocols against, with their packages in Debian and Ubuntu.
PEERS := iptables-nft-restore:iptables ipset curl openssl lftp sftp:openssh-client dig:bind9-dnsutils mariadb:mariadb-client swaks \
	chromium xmllint:libxml2-utils \
	turnserver:coturn turnutils_uclient:coturn squid:squid-openssl /usr/lib/squid/security_file_certgen:squid-openssl \
	iptables-restore:iptables promtool:prometheus systemd-analyze:systemd strace shellcheck zsh fish

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1 /p' Makefile | while read -r name text; do printf '  make %-7s %s\n' "$$name" "$$text"; done

setup: ## install what is missing here, with apt-get
	@scripts/setup

build: setup ## bin/wallprobe
	go build -trimpath -o bin/wallprobe ./cmd/wallprobe

lab: build ## every application against the main firewalls, in a rootless lab
	@scripts/lab-exec bin/wallprobe lab

compose: setup ## the tests of the lab in Docker Compose, on a machine with Docker
	@scripts/compose

test: setup ## every check: format, vet, lint, vulnerabilities, tests with the lab and real peers, cross builds
	@scripts/setup $(PEERS)
	@scripts/test

bench: build ## the figures beside their targets, and nmap and iperf3 where they do the same
	@scripts/setup nmap iperf3
	go build -o bin/bench ./lab/bench
	@scripts/lab-exec bin/bench -program bin/wallprobe

fuzz: setup ## each fuzz target for FUZZTIME (default 20s)
	@scripts/fuzz

readme: build ## run the commands in README.md and put their output there
	@scripts/lab-exec scripts/readme

clean: ## remove what was built
	@! scripts/compose check >/dev/null 2>&1 || scripts/compose clean
	rm -rf bin
