# make quickstart   from a fresh clone to a trained network and a table (10 minutes on two cores)
# make setup        system packages, libtorch into .libtorch/ (CUDA=1: with CUDA, also on a machine without a GPU)
# make build        the programs, in target/release/
# make test         the whole test suite
# make test-gpu     the GPU path on simulated GPUs, after make setup CUDA=1 (docs/simulated_gpu.md)
# make docs         the documentation as a book, in target/book/, checked against the programs
# make bench        speed against PyTorch, DALI and our static network (20 minutes; an idle machine)
# make lint         formatting and clippy
# make install      the programs, libtorch, configs and shell completions under PREFIX

PREFIX ?= /usr/local
RANKS ?= 2
QUICK ?= fashion_quick.yaml
FASHION_MNIST ?= /usr/share/datasets/fashion-mnist
CARGO ?= cargo
DEFAULT_SIGNALS = env --default-signal=INT,HUP,QUIT
MDBOOK_VERSION = 0.5.4
MDBOOK = .tools/bin/mdbook
BIN = target/release
BINARIES = codinet-train codinet-infer codinet-analyze codinet-export codinet-data codinet-launch

.PHONY: quickstart setup build test test-gpu docs bench install data lint

quickstart: build data
	@$(BIN)/codinet-launch -n $(RANKS) $(QUICK) $(ARGS)
	@echo "train longer: $(BIN)/codinet-launch -n $(RANKS) $(QUICK) --set stages.0.epochs=10"
	@echo "(Ctrl-C writes a checkpoint and prints the command that resumes)"

setup:
	@sh cluster/setup.sh

build: setup
	@$(CARGO) build --release --locked

data: data/fashion-mnist/test/dataset.json

data/fashion-mnist/test/dataset.json: | build
	@sh cluster/setup.sh data
	@$(BIN)/codinet-data import fashion-mnist --src $(FASHION_MNIST) --output data/fashion-mnist

# Shells ignore SIGINT in background jobs, and nohup SIGHUP; tests send both.
test: setup
	@$(DEFAULT_SIGNALS) $(CARGO) test --release --locked --workspace
	@$(DEFAULT_SIGNALS) $(CARGO) test --release --locked -p codinet-data --features parquet,store-tests --test dataloader -- stores:: import_images::
	@$(DEFAULT_SIGNALS) $(CARGO) test --release --locked -p codinet-trainer --features store-tests --test stores

test-gpu: build
	@tests/gpu/run.py $(ARGS)

docs: build
	@$(MDBOOK) --version 2>/dev/null | grep -qx "mdbook v$(MDBOOK_VERSION)" || $(CARGO) install mdbook --locked \
	    --no-default-features --features search --version $(MDBOOK_VERSION) --force --root .tools
	@$(MDBOOK) build docs
	@$(CARGO) test --release --locked --workspace --test docs
	@echo "target/book/index.html"

bench: build data
	@tests/bench/run.sh $(ARGS)

lint: setup
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	@python3 tests/style.py

install:
	@test -x $(BIN)/codinet-train || { echo "run make build first, as the user who builds, not as root" >&2; exit 1; }
	install -d $(PREFIX)/bin $(PREFIX)/lib/codinet
	install -m 755 $(addprefix $(BIN)/,$(BINARIES)) $(PREFIX)/bin
	@set -e; for file in configs/*/*.yaml; do install -D -m 644 $$file $(PREFIX)/share/codinet/$$file; done
	rm -rf $(PREFIX)/lib/codinet/torch $(PREFIX)/lib/codinet/nvidia
	@if [ -z "$$LIBTORCH" ]; then set -ex; \
	    mkdir -p $(PREFIX)/lib/codinet/torch $(PREFIX)/lib/codinet/nvidia; \
	    cp -R .libtorch/torch/lib $(PREFIX)/lib/codinet/torch; \
	    for part in .libtorch/nvidia/*; do \
	        mkdir -p $(PREFIX)/lib/codinet/nvidia/$${part##*/}; \
	        cp -R $$part/lib $(PREFIX)/lib/codinet/nvidia/$${part##*/}; done; fi
	@set -e; for program in $(BINARIES); do \
	    install -d $(PREFIX)/share/bash-completion/completions $(PREFIX)/share/zsh/site-functions $(PREFIX)/share/fish/vendor_completions.d; \
	    $(PREFIX)/bin/$$program --completions bash >$(PREFIX)/share/bash-completion/completions/$$program; \
	    $(PREFIX)/bin/$$program --completions zsh >$(PREFIX)/share/zsh/site-functions/_$$program; \
	    $(PREFIX)/bin/$$program --completions fish >$(PREFIX)/share/fish/vendor_completions.d/$$program.fish; \
	done
	@echo "installed under $(PREFIX)"
