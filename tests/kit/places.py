"""Where things lie: the tree, the programs that tests run, the golden files."""

from pathlib import Path

TREE = Path(__file__).resolve().parent.parent.parent
PROGRAMS = TREE / "tests/programs"
GOLDEN = TREE / "tests/golden"
