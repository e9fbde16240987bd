# Two commands: `make demo` shows the main job, `make test` passes the tests. Each installs what is
# missing (Debian, Ubuntu; root or sudo) and drops to an ordinary user where root calls it.

.PHONY: demo test lint bench

demo:
	sh contrib/demo/run

test:
	sh tests/run

lint:
	sh tests/run tests/test_lint.py

bench:
	sh bench/run
