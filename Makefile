# Two commands: `make demo` shows the main job, `make test` passes the tests. Each installs what is
# missing (Debian, Ubuntu; root or sudo) and drops to an ordinary user where root calls it.

.PHONY: demo test slow lint bench man site

demo:
	sh contrib/demo/run

test:
	sh tests/run

# What takes minutes each: the matrix of MPIs, ten minutes of fuzzing, other kernels; then Debian sid, with both commands,
# and old images on the C libraries of newer hosts, whose table is in docs/mpi.md.
PAIRS = sh tests/run -m slow tests/mpi_inject/test_mpi_glibc_run.py
slow:
	sh tests/run -m slow
	.ci/distribution trixie $(PAIRS)
	.ci/distribution sid make demo
	.ci/distribution sid sh tests/run -m "not slow and not alike"
	.ci/distribution sid $(PAIRS)

lint:
	sh tests/run tests/test_lint.py

bench:
	sh bench/run

# The manual pages, from the tables that parse the command lines.
man:
	python3 -m rootless_udi.commands.common.manpages build/man

# The documents as a site in build/site; needs `pip install .[docs]`.
site:
	sh docs/build
