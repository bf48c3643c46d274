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
        folder: theirs alone; its name says what the tensors depend on.
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

    @property
    def num_parts(self) -> int:
        return -(-self.num_items // self.part_size)

    def items(self, part: int) -> range:
        """Return the items of a part."""
        return range(part * self.part_size, min((part + 1) * self.part_size, self.num_items))

    def share(self, rank: int = 0, world_size: int = 1) -> int:
        """Return how many items fall to one process; parts go round the processes."""
        return sum(len(self.items(part)) for part in range(rank, self.num_parts, world_size))

    def make_missing(
        self, rank: int = 0, world_size: int = 1, advance: Callable[[int], None] = lambda count: None
    ) -> None:
        """Make the parts of this process that are not there.

        Args:
            advance: told how many items were done, those found on disk included.
        Raises:
            DataError: if a part cannot be written.
        """
        for part in range(rank, self.num_parts, world_size):
            if not self._path(part).is_file() and not self.is_done():
                self._make(part)
            advance(len(self.items(part)))

    def read(self) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors of every part in order; what is missing or torn is made first.

        Raises:
            DoneElsewhere: if parts are missing because another process has put all of them together.
            DataError: if a part cannot be written.
        """
        for part in range(self.num_parts):
            tensors = load_checked(self._path(part)) if self._path(part).is_file() else None
            if tensors is None and self.is_done():
                raise DoneElsewhere
            yield self._make(part) if tensors is None else tensors

    def remove(self) -> None:
        """Remove all parts, when what was made of them is kept elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, part: int) -> Path:
        items = self.items(part)
        return self.folder / f"part_{items.start}_{items.stop}.safetensors"

    def _make(self, part: int) -> dict[str, Tensor]:
        tensors = self.compute(self.items(part))
        try:
            save_checked(self._path(part), tensors)
        except DataError:
            if not self.is_done():  # who was done has removed the folder
                raise
        return tensors
