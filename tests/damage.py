"""Damage: random changes to texts, JSON values, files and folders, and what may follow.

Strategies of hypothesis describe the changes, so that a failing example shrinks to the
least change that fails. `outcome` runs an action on what was changed, and holds it to
the property that all targets share: success, or one line and nothing left behind.
"""

import codecs
import hashlib
import io
import json
import os
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
import unicodedata
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

from t2i_tutorial.core import UserError

LONGEST = 800  # characters of a message, 60 of them escaped among them
SECONDS = 60  # after which an example hangs
GIGABYTES = 1.5  # that an example may take beside what the process has

# ---- texts

PIECES = (
    *("a blue and red dragon", "cat", "", " ", "  ", "\t", "\n", "\r\n", "\r", "\0"),
    *("\x07", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u2029", "\u00a0", "\u3000"),
    *("\u200b", "\u200d", "\ufeff", "\u2060", "\u00ad", "\u202e", "\u0301", "e\u0301"),
    *("\u212b", "\ufb01", "\uff41", "\u0130", "ß", "猫", "ねこ", "🐉", "👩\u200d🚀"),
    *("\ud800", "\udcff", "\ufffd", "\uffff", "\U0010ffff"),
    *("$", "$$", "$_$", r"$\frac{1}{$", r"\$", "^", "_", "{", "}", "\\", "#", "%", "&"),
    *("'", '"', "`", "|", "<b>", "&amp;", "%s", "%d", "{0}", "{x!r}", "\\n", "\\u0000"),
    *("/", "//", "..", "../..", "./", "~", "C:\\a", "file:///a", "hf://a/b", "a/b"),
    *("-", "--", "--help", "-1", "0", "1", "1e400", "nan", "NaN", "inf", "-inf", "1_0"),
    *("0x10", "٣", "True", "true", "none", "null", "[]", "()", "{}", "a,b", ",", "="),
)
LONG = st.builds(
    lambda piece, n: piece * n,
    st.sampled_from(PIECES),
    st.sampled_from((50, 300, 1_001, 20_000)),
)
TEXTS = st.one_of(
    st.sampled_from(PIECES),
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
    st.text(max_size=12),
    LONG,
)
NAMES = TEXTS.filter(  # of files: what a file system takes as one name
    lambda t: (
        t not in ("", ".", "..")
        and not {"/", "\0"} & set(t)
        and len(os.fsencode(t.encode("utf-8", "replace").decode())) < 200
        and not any("\ud800" <= c <= "\udfff" for c in t)
    )
)

# ---- JSON

INTS = (0, 1, -1, 2, 3, 7, 8, 16, 255, 2**15, 2**31, 2**32, 2**63, 2**64, -(2**63))
NUMBERS = st.one_of(
    st.sampled_from(INTS),
    st.sampled_from((0.0, -0.0, 0.5, -1.5, 1e-320, 1e308)),
    st.sampled_from((float("nan"), float("inf"), float("-inf"))),
    st.integers(),
)


class Raw(str):
    "A text that stands in the JSON as it is, without quotes."


RAW = (
    *("1e999", "9" * 5000, "[" * 5000, "{" * 3000, '{"a":' * 2000, "", "tru", "'a'"),
    *("[1,]", '"\\ud800"', '"\\u0000"', "0x10", "01", "\x00", "/*a*/1", "Infinity"),
)


def _nested(depth: int):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    TEXTS,
    st.sampled_from(RAW).map(Raw),
    st.sampled_from((3, 200)).map(_nested),
    st.lists(st.one_of(NUMBERS, TEXTS), max_size=3),
    st.dictionaries(st.sampled_from(("a", "size", "format", "text")), NUMBERS),
)
JSON_CHANGES = st.tuples(
    st.sampled_from(
        ("replace", "replace", "replace", "remove", "rename", "add", "wrap", "swap")
    ),
    st.integers(0, 400),  # which value
    VALUES,
    TEXTS,  # a new key
)


def _slots(value, found: list) -> list:
    "Every place in a JSON value, as (container, key)."
    items = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items[:60]:
        found.append((value, key))
        _slots(inner, found)
    return found


def change_json(value, change: tuple):
    "A JSON value with one change."
    kind, index, new, key = change
    root = [value]
    slots = _slots(root, [])
    place, name = slots[index % len(slots)]
    if kind == "remove":
        place.pop(name)
        return root[0] if root else None
    if kind == "rename" and isinstance(place, dict):
        place[key] = place.pop(name)
    elif kind == "add" and isinstance(place[name], (dict, list)):
        if isinstance(place[name], dict):
            place[name][key] = new
        else:
            place[name].append(new)
    elif kind == "wrap":
        place[name] = [place[name]]
    elif kind == "swap":
        other, second = slots[(index * 7 + 3) % len(slots)]
        if other is not root and place is not root:
            place[name], other[second] = _copy(other[second]), _copy(place[name])
    else:
        place[name] = new
    return root[0]


def _copy(value):
    "A copy of a JSON value, so that no swap makes a circle."
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def to_json(value) -> bytes:
    "JSON as a careless program writes it: NaN, half characters and `Raw` as they are."
    raw = []

    def mark(v):
        if isinstance(v, Raw):
            raw.append(v)
            return f"@raw{len(raw) - 1}@"
        if isinstance(v, dict):
            return {str(k): mark(x) for k, x in v.items()}
        return [mark(x) for x in v] if isinstance(v, (list, tuple)) else v

    text = json.dumps(mark(value))
    for i, v in enumerate(raw):
        text = text.replace(f'"@raw{i}@"', v)
    return text.encode("utf-8", "surrogatepass")


# ---- bytes and files

SHARES = st.floats(0, 1)  # where in a file
CHUNKS = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from((b"\0" * 4, b"\xff" * 8, b"\xef\xbb\xbf", b"\r\n", b"PK\x03\x04")),
    st.sampled_from((b"\x80\x04.", b"{", b'"', b"\n", b"\xfe\xff", b"$", b"\x1b[2J")),
)
BYTE_CHANGES = st.tuples(
    st.sampled_from(("flip", "cut", "insert", "double", "empty", "zero")),
    SHARES,
    CHUNKS,
)
CODECS = ("utf-16", "utf-8-sig", "latin-1", "cp1252", "utf-32", "utf-7")


def change_bytes(data: bytes, change: tuple) -> bytes:
    "Bytes with one change."
    kind, share, chunk = change
    at = int(share * len(data))
    if kind == "flip":
        return data[:at] + chunk + data[at + len(chunk) :]
    if kind == "cut":
        return data[:at]
    if kind == "insert":
        return data[:at] + chunk + data[at:]
    if kind == "double":
        return data + data
    if kind == "zero":
        return data[:at] + bytes(len(data) - at)
    return b""


def _change_safetensors(data: bytes, change: tuple) -> bytes:
    "A safetensors file with one change in its header, whose length is right again."
    (n,) = struct.unpack("<Q", data[:8])
    header = to_json(change_json(json.loads(data[8 : 8 + n]), change))
    return struct.pack("<Q", len(header)) + header + data[8 + n :]


def _change_content(path: Path, change: tuple) -> None:
    "Change JSON, lines of JSON, or the header of weights, by what is in it."
    data = path.read_bytes()
    try:
        if path.suffix == ".safetensors":
            data = _change_safetensors(data, change)
        elif path.suffix == ".jsonl":
            lines = data.splitlines() or [b"{}"]
            i = change[1] % len(lines)
            lines[i] = to_json(change_json(json.loads(lines[i]), change))
            data = b"\n".join(lines) + b"\n"
        elif path.suffix == ".json":
            data = to_json(change_json(json.loads(data), change))
        else:
            text = (
                to_json(change[2])
                if len(data) % 2
                else change[3].encode("utf-8", "surrogatepass")
            )
            at = change[1] % (len(data) + 1)
            data = data[:at] + text + data[at:]
    except (ValueError, KeyError, IndexError, struct.error, RecursionError):
        data = change_bytes(data, ("flip", 0.5, b"\xff"))  # it was damaged before
    path.write_bytes(data)


FILE_CHANGES = st.one_of(
    st.tuples(st.just("content"), st.integers(0, 9), JSON_CHANGES),
    st.tuples(st.just("content"), st.integers(0, 9), JSON_CHANGES),
    st.tuples(st.just("bytes"), st.integers(0, 9), BYTE_CHANGES),
    st.tuples(st.just("codec"), st.integers(0, 9), st.sampled_from(CODECS)),
    st.tuples(
        st.sampled_from(("remove", "folder", "link", "broken link", "loop", "pipe")),
        st.integers(0, 9),
        st.none(),
    ),
    st.tuples(st.just("swap"), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.sampled_from(("rename", "extra")), st.integers(0, 9), NAMES),
)


def change_folder(folder: Path, change: tuple) -> None:
    "One change of one file in a folder, which may hold folders."
    kind, index, argument = change
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    if not files:
        return
    path = files[index % len(files)]
    if kind == "content":
        return _change_content(path, argument)
    if kind == "bytes":
        path.write_bytes(change_bytes(path.read_bytes(), argument))
    elif kind == "codec":
        text = path.read_bytes().decode("utf-8", "replace")
        path.write_bytes(codecs.encode(text + "ä", argument, "replace"))
    elif kind == "swap":
        other = files[argument % len(files)]
        mine, theirs = path.read_bytes(), other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(mine)
    elif kind == "rename":
        path.rename(path.with_name(argument))
    elif kind == "extra":
        path.with_name(argument).write_bytes(path.read_bytes())
    else:
        data = path.read_bytes()
        path.unlink()
        outside = folder.parent / "outside"
        if kind == "folder":
            path.mkdir()
        elif kind == "link":
            outside.write_bytes(data)
            path.symlink_to(outside)
        elif kind == "broken link":
            path.symlink_to(outside)
        elif kind == "loop":
            path.symlink_to(path.name)
        elif kind == "pipe":
            os.mkfifo(path)


@contextmanager
def damaged(sound: Path, changes: list):
    "A copy of a sound folder with some changes, for the length of the block."
    with tempfile.TemporaryDirectory(prefix="damage-") as scratch:
        copy = Path(scratch) / sound.name
        shutil.copytree(sound, copy)
        for change in changes:
            change_folder(copy, change)
        yield copy


# ---- what may follow


class Hang(BaseException):
    "An example took longer than it may."


@contextmanager
def _limits():
    "A time limit and a limit of memory for the block, where the system has them."

    def stop(*_):
        raise Hang(f"no answer after {SECONDS} s")

    main = threading.current_thread() is threading.main_thread()
    start = time.monotonic()
    if main:
        handler = signal.signal(signal.SIGALRM, stop)
        left, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)  # pytest-timeout's own
    memory = _limit_memory()
    try:
        yield
    finally:
        if memory:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, memory)
        if main:
            signal.signal(signal.SIGALRM, handler)
            left = max(left - (time.monotonic() - start), 0.1) if left else 0
            signal.setitimer(signal.ITIMER_REAL, left)


def _limit_memory() -> tuple | None:
    "Allow so much more address space than the process has; returns the old limits."
    if not sys.platform.startswith("linux"):
        return None
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = int(pages * resource.getpagesize() + GIGABYTES * 2**30)
    if soft != resource.RLIM_INFINITY:
        most = min(most, soft)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    return soft, hard


def snapshot(folder: Path) -> dict[str, str]:
    "What is in a folder: of each file a digest, of all else its kind."
    found = {}
    for p in sorted(folder.rglob("*")):
        kind = "link" if p.is_symlink() else "folder" if p.is_dir() else "other"
        if p.is_file() and not p.is_symlink():
            kind = hashlib.sha256(p.read_bytes()).hexdigest()
        found[str(p.relative_to(folder))] = kind
    return found


def one_line(message: str) -> str:
    "The message, if it is one line that a person can read."
    assert message.strip(), "the message is empty"
    odd = [c for c in message if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not odd, f"{odd[0]!r} in the message {message!r:.300}"
    assert len(message) <= LONGEST, f"{len(message)} characters: {message[:300]!r}"
    assert "Traceback" not in message and message != "None", message
    return message


OUTCOMES: dict[str, Counter] = {}  # target -> how often what came out


def count(target: str, what: str) -> None:
    OUTCOMES.setdefault(target, Counter())[what] += 1


def outcome(target: str, action, folder: Path | None = None):
    """Run an action on damaged input: (its result, the message of its refusal or None).

    Fails for any other error, a message of several lines, a hang, a loss of memory, a
    temporary file that stays, and a refusal that changes the `folder`.
    """
    before = snapshot(folder) if folder else {}
    result = refusal = None
    with warnings.catch_warnings(record=True) as notes, _limits():
        warnings.simplefilter("always", UserWarning)
        try:
            result = action()
        except UserError as e:
            refusal = one_line(str(e))
    for note in notes:
        if issubclass(note.category, UserWarning):
            one_line(str(note.message).strip())
    if folder:
        check_left(folder, before, refusal)
    count(target, "refused" if refusal else "success")
    if any(issubclass(n.category, UserWarning) for n in notes):
        count(target, "noted")
    return result, refusal


def check_left(folder: Path, before: dict, refusal: str | None) -> None:
    "Nothing half-written; after a refusal all as it was."
    after = snapshot(folder)
    half = [n for n in after.keys() - before.keys() if n.endswith((".tmp", ".old"))]
    assert not half, f"left behind: {half}"
    if refusal:
        changed = {
            n for n in after.keys() | before.keys() if after.get(n) != before.get(n)
        }
        assert not changed, (
            f"changed by a refused action: {sorted(changed)} ({refusal})"
        )


def run_cli(main, arguments: list[str]) -> tuple[int, str, str]:
    "Exit code, output and errors of a command that runs in this process."
    out, err = io.StringIO(), io.StringIO()
    was = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        code = main(arguments)
    except SystemExit as e:
        code = e.code
    finally:
        sys.stdout, sys.stderr = was
    return code, out.getvalue(), err.getvalue()
