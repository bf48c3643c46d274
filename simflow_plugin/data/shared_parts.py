"""Work on many items that any process may share and resume: rows of items, computed once, kept in files with digests.

    folder/part_12288_13312.safetensors    tensors of items 12288 .. 13311

A part is whole or not there, and named by its items, so that none of another size is taken for it. So processes need
not know of each other: each makes the missing parts of its share, a run that was interrupted goes on with the others,
and whoever reads makes what is still missing, or torn, itself. Who finds the whole work done by another makes no more:
its parts are gone then.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from simflow_plugin.data.disk_cache import load_checked, save_checked
from simflow_plugin.errors import DataError

PART_SIZE = 1024
"""Items that an interruption costs at most, in each process."""

Compute = Callable[[range], dict[str, Tensor]]
"""Numbers of items -> their tensors by name; none where nothing of the range could be read."""


class DoneElsewhere(Exception):
    """The whole work was put together by another process while this one read its parts."""


@dataclass(frozen=True)
class SharedParts:
    """The parts of one piece of work.

    Args:
        folder: theirs alone; named by what the tensors depend on.
        num_items: in all.
        compute: of a range of items.
        part_size: items a part.
        is_done: whether what is made of all parts is there, so that none is needed any more; asked before each.
    """

    folder: Path
    num_items: int
    compute: Compute
    part_size: int = PART_SIZE
    is_done: Callable[[], bool] = lambda: False

    def share(self, rank: int = 0, world_size: int = 1) -> list[range]:
        """Return the items of each part that falls to one process; parts go round the processes."""
        starts = range(rank * self.part_size, self.num_items, world_size * self.part_size)
        return [range(start, min(start + self.part_size, self.num_items)) for start in starts]

    def make_missing(
        self, rank: int = 0, world_size: int = 1, advance: Callable[[int], None] = lambda count: None
    ) -> None:
        """Make the parts of this process that are not there.

        Args:
            advance: told how many items were done, those found on disk included.
        Raises:
            DataError: if a part cannot be written.
        """
        for items in self.share(rank, world_size):
            if not self._path(items).is_file() and not self.is_done():
                self._make(items)
            advance(len(items))

    def read(self) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors of every part in order; what is missing or torn is made first.

        Raises:
            DoneElsewhere: if parts are missing because another process has put all of them together.
            DataError: if a part cannot be written.
        """
        for items in self.share():
            tensors = load_checked(self._path(items)) if self._path(items).is_file() else None
            if tensors is None and self.is_done():
                raise DoneElsewhere
            yield self._make(items) if tensors is None else tensors

    def remove(self) -> None:
        """Remove all parts, when what was made of them is kept elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, items: range) -> Path:
        return self.folder / f"part_{items.start}_{items.stop}.safetensors"

    def _make(self, items: range) -> dict[str, Tensor]:
        tensors = self.compute(items)
        try:
            save_checked(self._path(items), tensors)
        except DataError:
            if not self.is_done():  # who was done has removed the folder
                raise
        return tensors
