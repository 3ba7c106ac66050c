"""Take data from a task into the registry: every model version says by digest what it was trained on."""

from typing import Any

from cloud.learning import snapshot
from cloud.learning.task import Data, Task
from coordinator.client import Client, Snapshot


def register(client: Client, task: Task, options: dict[str, Any]) -> tuple[Data, Snapshot]:
    """Freeze a task's data, store them, and read them back: what is trained on is what is registered.

    Args:
        client: of the coordinator.
        task: gives the data.
        options: for `load_data`, over those of `fieldfare.toml`.

    Raises:
        TaskError: `load_data` gave something else than a task must.
        DataError: the stored bytes are not those that were sent.
    """
    taken = snapshot.take(task.name, {**task.options, **options}, task.load_data(**options))
    for content in taken.files.values():
        client.put_blob(content)
    registered = client.create_snapshot(task=task.name, manifest=taken.manifest.fields())
    return snapshot.load(taken.manifest, client.get_blob), registered
