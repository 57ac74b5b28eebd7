"""A library is native code: it is loaded only where it is trusted, and as it was when it was."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.models import small_config

from gecko_mlc import home, trust
from gecko_mlc.cache import library_name, model_library
from gecko_mlc.cli import main
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.library import METADATA_MARKER, read_metadata
from gecko_mlc.runtime.library import check_library
from gecko_mlc.trust import check_trusted, check_undamaged, is_trusted, write_trusted


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder where nothing is trusted yet."""
    monkeypatch.setenv("GECKO_MLC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path, compiled: Callable[..., Path]) -> Path:
    """A model folder with a library that says when it is loaded: it writes the file `ran` beside itself."""
    folder = tmp_path / "model"
    folder.mkdir()
    metadata = read_metadata(compiled(small_config(num_layers=1))).model_dump_json(by_alias=True)
    marked = ",".join(str(byte) for byte in METADATA_MARKER + metadata.encode() + b"\0")
    (tmp_path / "hostile.c").write_text(
        f"""
        #include <stdio.h>
        const char marked[] = {{{marked}}};
        __attribute__((constructor)) static void run(void) {{ fclose(fopen("{folder}/ran", "w")); }}
        """
    )
    command = ["cc", "-shared", "-fPIC", "-o", folder / library_name("cpu"), tmp_path / "hostile.c"]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def library(folder: Path) -> Path:
    return folder / library_name("cpu")


@pytest.fixture
def gecko(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a command in this process: its exit code, and what it said."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["gecko-mlc", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out + err

    return run


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_library_that_came_with_a_model_is_refused_with_the_ways_to_go_on(
    device: str, folder: Path, library: Path
) -> None:
    with pytest.raises(GeckoError) as refused:
        model_library(folder, device)
    said = str(refused.value)
    assert f"{library}: native code that came with the model folder, and not trusted" in said
    assert all(way in said for way in (f"`gecko-mlc trust {library}`", "--model-lib", "without that file"))
    assert not (folder / "ran").exists()


def test_info_does_not_load_what_is_not_trusted(folder: Path, library: Path, gecko: Callable[..., tuple]) -> None:
    code, said = gecko("info", library)
    assert code == 0
    assert f"not tried, it is not trusted: `gecko-mlc trust {library}`" in said
    assert not (folder / "ran").exists()


def test_trust_is_given_listed_and_taken(
    folder: Path, library: Path, own_home: Path, gecko: Callable[..., tuple]
) -> None:
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    assert gecko("trust") == (0, "")
    for what in (folder, library):
        code, said = gecko("trust", what)
        assert code == 0
        assert f"trusted: {digest}  {library}, for cpu" in said
        assert model_library(folder, "cpu") == library
        assert gecko("trust") == (0, f"{digest}  {library}\n")
        assert gecko("trust", "--remove", what) == (0, f"{what} is trusted no longer\n")
        with pytest.raises(GeckoError, match="not trusted"):
            model_library(folder, "cpu")
    assert [path.name for path in own_home.iterdir() if path.suffix == ".json"] == ["trusted.json"]
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trust", "{folder}/none.so"], "none.so: no such library"),
        (["trust", "{folder}/empty"], "empty: no library in this folder"),
        (["trust", "{folder}/text.so"], "text.so: not a library of gecko-mlc"),
        (["trust", "--remove", "{folder}/text.so"], "text.so: not trusted before"),
        (["trust", "--remove"], "--remove: name the library"),
    ],
)
def test_what_cannot_be_trusted(arguments: list[str], message: str, folder: Path, gecko: Callable[..., tuple]) -> None:
    (folder / "empty").mkdir()
    (folder / "text.so").write_text("text")
    code, said = gecko(*(argument.format(folder=folder) for argument in arguments))
    assert code == 1
    assert message in said


def test_what_was_compiled_here_is_known_wherever_it_lies_and_damaged_where_it_was(
    library: Path, tmp_path: Path
) -> None:
    """By its bytes; the library that takes its place is not silently another, named or not."""
    trust.trust(library)
    moved = tmp_path / "moved.so"
    moved.write_bytes(library.read_bytes())
    check_trusted(moved)
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 4
    library.write_bytes(data)
    for check in (check_trusted, check_undamaged):
        with pytest.raises(GeckoError, match=r"damaged or replaced: .*if they should be others; compile it again"):
            check(library)
    elsewhere = tmp_path / "elsewhere.so"
    elsewhere.write_bytes(data)
    check_undamaged(elsewhere)
    trust.trust(library)
    check_trusted(library)


def test_a_package_trusts_its_own_from_anywhere(
    library: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_trusted(tmp_path / "trusted.json", [library])
    assert json.loads((tmp_path / "trusted.json").read_text())["libraries"][0]["path"] == "model/cpu.so"
    assert not is_trusted(library)
    monkeypatch.setattr(home, "_package", None)
    home.use_package(tmp_path)
    assert model_library(folder, "cpu") == library
    library.write_bytes(library.read_bytes() + b"\0")
    with pytest.raises(GeckoError, match="damaged or replaced"):
        check_undamaged(library)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"libraries": [{"sha256": 1}]}', "\xff", '{"libraries": 5}'])
def test_a_damaged_list_trusts_nothing_and_is_written_anew(content: str, library: Path, own_home: Path) -> None:
    own_home.mkdir()
    (own_home / "trusted.json").write_text(content, encoding="latin-1")
    assert not is_trusted(library)
    trust.trust(library)
    assert is_trusted(library)


def test_where_there_is_no_home_what_is_named_runs(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GECKO_MLC_HOME", "~no-such-user")
    check_undamaged(library)
    with pytest.raises(GeckoError, match="not trusted"):
        check_trusted(library)


def test_a_library_of_another_tvm_is_refused_before_it_is_loaded(folder: Path, library: Path) -> None:
    version = read_metadata(library).tvm_version
    other = "0.1" + version[3:]
    library.write_bytes(
        library.read_bytes().replace(f'"tvm_version":"{version}"'.encode(), f'"tvm_version":"{other}"'.encode())
    )
    message = (
        rf"compiled by TVM {other}, here is TVM {version}; compile it again with `gecko-mlc compile`, or pip install"
    )
    with pytest.raises(GeckoError, match=message):
        check_library(library)
    assert not (folder / "ran").exists()
