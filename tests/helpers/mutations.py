"""Ways in which a corpus that came from somewhere may be wrong: bytes, JSON, tables, headers of recordings."""

from __future__ import annotations

import csv
import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BIG = "@@BIG@@"
JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    10**400,
    BIG,
    float("nan"),
    float("inf"),
    1e308,
    "",
    " ",
    "A",
    "C",
    "\ud800 half",
    "nul\x00 and \x1b[31m bell\x07",
    "line\nbreak\r\n",
    "../secret.wav",
    "../../secret.wav",
    "/etc/passwd",
    "a/../../secret.wav",
    "x" * 5000,
    "<script>alert(1)</script>",
    [],
    {},
    [[[[]]]],
    {"text": {"text": []}},
    ["a", 1, None],
    {"bytes": "no bytes", "path": 5},
]


def mutate(root: Path, rng: random.Random) -> str:
    """Damage one file below `root` in one way; returns what was done."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    index = [path for path in files if path.suffix not in (".wav", ".flac", ".txt")]
    path = rng.choice(index if index and rng.random() < 0.7 else files)
    ways: list[Callable[[Path, random.Random], Any]] = [_bytes]
    if path.suffix in (".json", ".jsonl"):
        ways += [_json] * 5
    elif path.suffix == ".csv":
        ways += [_csv] * 4
    elif path.suffix == ".parquet":
        ways += [_parquet] * 3
    elif path.suffix in (".wav", ".flac"):
        ways += [_header] * 3
    way = rng.choice(ways)
    try:
        done = way(path, rng)
    except (
        ValueError,
        TypeError,
        csv.Error,
        struct.error,
        LookupError,
        RecursionError,
        OSError,
        pa.ArrowException,
    ) as error:
        done = f"nothing, it is damaged already ({type(error).__name__})"
    return f"{way.__name__} {path.relative_to(root)}: {done}"


def _bytes(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content) + 1)
    kind = rng.choice(["cut", "flip", "insert", "delete", "empty", "random", "gone", "folder", "twice"])
    if kind == "cut":
        content = content[:at]
    elif kind == "flip":
        for _ in range(rng.choice([1, 4, 30])):
            if content:
                content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == "insert":
        content[at:at] = rng.choice([b"\xff\xfe", b"\x00", b"[" * 3000, b'"', b"1" * 6000, b"\n", b"{"])
    elif kind == "delete":
        del content[at : at + rng.choice([1, 10, 100])]
    elif kind == "twice":
        content = content * 2
    elif kind in ("empty", "random"):
        content = bytearray(rng.randbytes(200) if kind == "random" else b"")
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "gone":
        path.write_bytes(content)
    return f"{kind} at {at}"


def _json(path: Path, rng: random.Random) -> str:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    at = rng.randrange(len(lines))
    value, done = change(json.loads(lines[at]), rng)
    lines[at] = json.dumps(value).replace(f'"{BIG}"', "1" * 5000)
    if path.suffix == ".jsonl" and rng.random() < 0.1:
        lines.insert(at, lines[at])
        done += ", line twice"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return done


def change(value: Any, rng: random.Random) -> tuple[Any, str]:
    """A copy of a JSON value with junk, or nothing, or something twice, in one place of it."""
    spots: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, inner in pairs:
            spots.append((node, key))
            visit(inner)

    visit(value)
    if not spots or rng.random() < 0.03:
        return rng.choice(JUNK), "all of it"
    node, key = rng.choice(spots)
    kind = rng.choice(["junk", "junk", "junk", "drop", "twice", "swap"])
    if kind == "drop":
        del node[key]
    elif kind == "twice":
        if isinstance(node, list):
            node.insert(key, node[key])
        else:
            node[rng.choice(["id", "text", "path", "audio", "0", "\ud800", "k" * 300, "a\nb"])] = node[key]
    elif kind == "swap":
        other, where = rng.choice(spots)
        node[key] = json.loads(json.dumps(other.get(where) if isinstance(other, dict) else None))
    else:
        node[key] = rng.choice(JUNK)
    return value, f"{kind} {str(key)[:40]!r}"


def _csv(path: Path, rng: random.Random) -> str:
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    row = rng.randrange(len(rows))
    column = rng.randrange(len(rows[row]))
    kind = rng.choice(["junk", "junk", "drop", "quote", "twice"])
    if kind == "junk":
        rows[row][column] = str(rng.choice(JUNK))
    elif kind == "drop":
        del rows[row][column]
    elif kind == "twice":
        rows.insert(row, rows[row])
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    text = buffer.getvalue()
    if kind == "quote":
        at = rng.randrange(len(text))
        text = text[:at] + '"' + text[at:]
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return f"{kind} row {row} column {column}"


def _parquet(path: Path, rng: random.Random) -> str:
    table = pq.read_table(path)
    kind = rng.choice(["column", "retype", "json", "null", "nest"])
    name = rng.choice(table.column_names)
    at = table.column_names.index(name)
    if kind == "column":
        table = table.drop_columns([name])
    elif kind == "retype":
        cells: Any = rng.choice([[7] * len(table), ["x"] * len(table), [[1.5]] * len(table), [b"\xff"] * len(table)])
        table = table.set_column(at, name, pa.array(cells))
    elif kind == "null":
        table = table.set_column(at, name, pa.nulls(len(table), table.schema.field(name).type))
    elif kind == "nest":
        table = table.rename_columns([f"{c}x" if c == name else c for c in table.column_names])
    elif "dialogue" in table.column_names:
        cells = [
            json.dumps(change(json.loads(cell), rng)[0]).replace(f'"{BIG}"', "1" * 5000)
            for cell in table["dialogue"].to_pylist()
        ]
        table = table.set_column(table.column_names.index("dialogue"), "dialogue", pa.array(cells))
    pq.write_table(table, path)
    return f"{kind} {name}"


def _header(path: Path, rng: random.Random) -> str:
    """Claims of a WAV's or FLAC's header that its samples do not hold."""
    content = bytearray(path.read_bytes())
    if path.suffix == ".flac":
        facts = int.from_bytes(content[18:26], "big")  # rate 20 bits, channels 3, depth 5, samples 36
        claim = rng.choice([facts | (1 << 36) - 1, facts & ~((1 << 36) - 1), facts | ((1 << 20) - 1) << 44, 0])
        content[18:26] = claim.to_bytes(8, "big")
        path.write_bytes(content)
        return f"flac facts {claim:x}"
    field, size, values = rng.choice(
        [
            (4, "<I", [0, 0xFFFFFFFF, 8]),
            (20, "<H", [0, 3, 7, 0xFFFE]),
            (22, "<H", [0, 2, 255, 65535]),
            (24, "<I", [0, 1, 44101, 2**31 - 1, 0xFFFFFFFF]),
            (34, "<H", [0, 1, 3, 64, 65535]),
            (40, "<I", [0, 1, 0xFFFFFFFF, 0x7FFFFFFF]),
        ]
    )
    value = rng.choice(values)
    struct.pack_into(size, content, field, value)
    path.write_bytes(content)
    return f"wav byte {field} = {value}"
