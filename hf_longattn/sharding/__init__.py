"""Sequences sharded across processes: what a process fetches from others, and how a mechanism computes its part."""

from .mechanism import attend_by_heads, attend_sharded, global_rows_of, only_locality
from .shard import Shard, even_bounds

__all__ = ["Shard", "attend_by_heads", "attend_sharded", "even_bounds", "global_rows_of", "only_locality"]
