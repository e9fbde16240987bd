"""The documents' commands do what their pages say; what is not run says why."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import documents, world
from tests.kit.places import TREE
from tests.kit.registry import Registry

pytestmark = pytest.mark.needs(
    "userns", "fuse", "busybox", "registry", "skopeo", "tar2sqfs", "mpich"
)

PAGES = [
    page
    for page in documents.pages()
    if any(block.language in documents.SHELLS for block in documents.blocks(page))
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with world.hub(tmp_path_factory.mktemp("hub")) as one:
        yield one


def check(page: str, user: User, env: dict[str, str], slow: bool) -> None:
    work = user.home / "work"
    work.mkdir()
    wrong = documents.run(page, work, {**user.env, **env}, user.argv(), slow)
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, user: User, registry: Registry) -> None:
    check(page, user, world.furnish(user.home, registry), slow=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.needs("buildah", "openmpi")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any("slow" in b.info for b in documents.blocks(p))]
)
def test_page_with_what_is_slow(page: str, user: User, registry: Registry, tmp_path: Path) -> None:
    world.push_debian(registry, tmp_path / "debian")
    env = {**world.furnish(user.home, registry), **world.building(user.home, registry)}
    try:
        check(page, user, env, slow=True)
    finally:
        # Files of the user's further ids, which only root of a user namespace can remove.
        storage = user.home / ".local/share/containers"
        user.run("buildah", "unshare", "rm", "-rf", storage, env=env, timeout=1200)


@pytest.mark.alike
@pytest.mark.parametrize("page", documents.pages())
def test_each_block_says_what_it_is(page: str) -> None:
    """Blocks are fenced, so that none is passed over: an indented one has no language."""
    for block in documents.blocks(page):
        assert block.language, f"{block}: a block without a language"
        assert set(block.info) <= documents.WORDS, f"{block}: {block.info}"
        for word in ("not-run", "slow"):
            assert block.info.get(word) != "", f"{block}: {word} has a reason"
    fenced = False
    before = ""
    for number, line in enumerate((TREE / page).read_text().splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        indented = line.startswith("    ") and not before and not fenced
        assert not indented or line.lstrip()[0] in "-*0123456789", f"{page}:{number}: fence it"
        before = line.strip()


@pytest.mark.parametrize(
    ("output", "expected", "right"),
    [
        ("a\nb\n", ["a", "b"], True),
        ("a\nb\n", ["a"], False),
        ("a 12 b\n", ["a ... b"], True),
        ("a\nx\ny\nb\n", ["a", "...", "b"], True),
        ("a\nb\n", ["a", "...", "b"], True),
        ("a\nx\n", ["a", "..."], True),
        ("x\n", ["a", "..."], False),
        ("a.c\n", ["abc"], False),
    ],
)
def test_output_is_compared(output: str, expected: list[str], right: bool) -> None:
    assert documents.fits(output, expected) is right


def test_what_a_page_shows_is_judged(
    user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner itself: state goes from block to block, and each kind of failure is told."""
    page = """
```console
$ here=1; cd .
$ echo a \\
> b
a b
```
```text title="given"
content
```
```sh
test $here = 1
cat <<'END'
   x
END
```
```sh fails
false
```
| there | rootless_udi |
|---|---|
| x | `true`, `false` |

```console
$ echo c
d
```
"""
    monkeypatch.setattr(documents, "TREE", tmp_path)
    (tmp_path / "page.md").write_text(page)
    work = user.home / "work"
    work.mkdir()
    wrong = documents.run("page.md", work, user.env, user.argv())
    assert [one.split(":")[:2] for one in wrong] == [["page.md", "22"], ["page.md", "24"]]
    assert wrong[0].startswith("page.md:22: status 1: false") and "it was\nc" in wrong[1]
    assert (work / "given").read_text() == "content\n"
