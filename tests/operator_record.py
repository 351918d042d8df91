"""What a piece of code asks of torch's operators."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators whose result's value or shape the host has to wait for.
SYNCING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "item"}
SYNCING |= {"lift_fresh"}  # a Python number made a tensor: a GPU waits for the copy


class Operators(TorchDispatchMode):
    """Records the names of all operators, the largest result, and indexing with bool masks."""

    def __init__(self):
        super().__init__()
        self.names, self.bool_indexing = [], []
        self.largest = 0
        self.numel = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.names.append(name)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            if masks:
                self.bool_indexing.append(name)
        numel = sum(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))
        self.numel[name] = self.numel.get(name, 0) + numel
        if "expand" not in name:  # a view of stride 0 takes no memory
            self.largest = max(self.largest, numel)
        return result

    def assert_no_sync(self):
        assert self.names
        assert not self.bool_indexing, self.bool_indexing
        assert not SYNCING & set(self.names), SYNCING & set(self.names)
