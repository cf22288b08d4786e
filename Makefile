.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

LINT := bin/golangci-lint

# Without Docker, tests run on the newest server installed on this machine, on both sides. Asked only when used.
INSTALLED = docker version >/dev/null 2>&1 || { \
	installed=$$(ls /usr/lib/postgresql 2>/dev/null | sort -n | tail -n 1); \
	export PGTEST_SOURCE=$${PGTEST_SOURCE:-$$installed} PGTEST_TARGET=$${PGTEST_TARGET:-$$installed}; \
	echo "no Docker: testing Postgres $$PGTEST_SOURCE to $$PGTEST_TARGET, as installed here"; }

.PHONY: help
help: ## show this list
	@sed -nE 's/^([a-z]+):.*## (.*)/\1\t\2/p' Makefile | awk -F '\t' '{printf "make %-11s %s\n", $$1, $$2}'

.PHONY: demo
demo: setup ## migrate a busy shop between two local servers, and watch it
	go run ./examples/quickstart

.PHONY: test
test: setup lint ## lint, vet and all tests with the race detector: what CI runs
	go vet ./...
	@$(INSTALLED); set -x; go test -race -timeout 60m ./...

.PHONY: lint
lint: $(LINT) ## run golangci-lint (the first time builds it, two minutes or so)
	$(LINT) run ./...

.PHONY: fmt
fmt: $(LINT) ## format the code
	$(LINT) fmt ./...

.PHONY: matrix
matrix: setup ## run the tests for every supported pair of Postgres versions
	@failed=; \
	for pair in 15:17 15:18 17:17 17:18 13:17; do \
		source=$${pair%:*} target=$${pair#*:}; \
		if [ $$source = 13 ] && ! docker image inspect postgres:13 >/dev/null 2>&1 && \
			! timeout 300 docker pull -q postgres:13 >/dev/null 2>&1; then \
			echo "== Postgres 13 to $$target: left out, as the image postgres:13 cannot be had here"; \
			continue; \
		fi; \
		echo "== Postgres $$source to $$target"; \
		PGTEST_SOURCE=$$source PGTEST_TARGET=$$target go test -count=1 -timeout 18m ./... || failed+=" $$pair"; \
	done; \
	if [ -n "$$failed" ]; then echo "== failed:$$failed"; exit 1; fi; \
	echo "== all passed"

.PHONY: screenshots
screenshots: setup ## every phase of the dashboard as pictures, in ./screenshots: desktop, dark and light, and phone
	@$(INSTALLED); set -x; DASHBOARD_SCREENSHOTS=$(CURDIR)/screenshots go test -count=1 ./dashboard/browsertest

.PHONY: torture
torture: setup ## everything at once, for ten minutes (TORTURE=1h, or TORTURE=1000000 transactions; TORTURE_SEED repeats a run's choices)
	@$(INSTALLED); set -x; TORTURE=$${TORTURE:-10m} go test -race -count=1 -timeout 0 -run 'TestTorture$$' -v . | grep --line-buffered -v level=INFO

.PHONY: foreign
foreign: setup ## move other applications' schemas there and back (SCHEMAS=dir of NAME/schema.sql; ONLY=a,b ROWS=10 SEED=1)
	@$(INSTALLED); set -x; FOREIGN_SCHEMAS=$(SCHEMAS) FOREIGN_ONLY=$(ONLY) FOREIGN_ROWS=$${ROWS:-10} FOREIGN_SEED=$${SEED:-1} \
		go test -count=1 -timeout 0 -run 'TestForeign$$' -v .

.PHONY: bench
bench: setup ## measure the initial copy against other tools (SCALE, ROUNDS, ONLY; see bench/README.md)
	@$(INSTALLED); set -x; go run ./bench

.PHONY: build
build: ## build the example programs into bin/, statically
	CGO_ENABLED=0 go build -trimpath -o bin/ ./examples/...

.PHONY: setup
setup: ## install what the tests and the demo need (Debian and Ubuntu, as root)
	@scripts/setup.sh

$(LINT): tools/go.mod tools/go.sum
	@echo "building golangci-lint"
	cd tools && go build -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@
