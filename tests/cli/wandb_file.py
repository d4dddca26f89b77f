"""Reading what W&B keeps on disk of an offline run: LevelDB's log format, with a record of W&B's in each entry."""

import json
from types import SimpleNamespace

from wandb.proto import wandb_internal_pb2

BLOCK = 32768
HEADER = 7


def entries(data):
    place, entry = HEADER, b""
    while place < len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        entry += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        # A whole entry, or the last piece of one.
        if kind in (1, 4):
            yield entry
            entry = b""


def read(path):
    """Return a run's name, group, tags and project, its config by key, and its history as a list of rows."""
    run, config, history = None, {}, []
    for entry in entries(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(entry)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
        elif kind == "config":
            config |= {update.key: json.loads(update.value_json) for update in record.config.update}
        elif kind == "history":
            items = record.history.item
            history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return SimpleNamespace(
        name=run.display_name,
        group=run.run_group,
        tags=sorted(run.tags),
        project=run.project,
        config=config,
        history=history,
    )
