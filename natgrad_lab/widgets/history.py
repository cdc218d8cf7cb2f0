"""The past of a run in bounded memory: evenly thinned, always with its first and its newest record."""


class History:
    """Keeps every `stride`-th record; when full, every other one is dropped and the stride doubles."""

    def __init__(self, capacity: int = 1000):
        """Keep at most `capacity` records (at least 4)."""
        if capacity < 4:
            raise ValueError(f"capacity must be at least 4; got {capacity}.")
        self.capacity = capacity
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._kept, self._stride, self._count, self._newest = [], 1, 0, None

    def append(self, record) -> None:
        """Add the next record."""
        if self._count % self._stride == 0:
            self._kept.append(record)
            if len(self._kept) >= self.capacity - 1:
                self._kept, self._stride = self._kept[::2], 2 * self._stride
        self._count, self._newest = self._count + 1, record

    def records(self) -> tuple:
        """Return the kept records in order, the newest last."""
        if self._newest is None or self._kept[-1] is self._newest:
            return tuple(self._kept)
        return (*self._kept, self._newest)
