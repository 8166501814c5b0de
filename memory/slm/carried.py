"""The adapters of a model in this process: which are known, and which of them it carries and answers with.

Imports torch and peft when the first one is loaded, so only an engine's child process uses this.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from memory.slm.adapters import MOST_HEADER_BYTES, WEIGHTS, Adapter, BadAdapter, shapes_in
from memory.slm.known import MOST_LOADED, KnownAdapters


class Carried:
    """For one thread at a time, and never while the model writes; `known` may be read at any time."""

    def __init__(self, model: Any, known: KnownAdapters) -> None:
        self._model = model
        self._known = known
        self._peft: Any = None  # the model with its adapters, while it has any
        self._loaded: dict[str, str] = {}  # name -> peft's name; the one used longest ago first
        self._count = 0
        self._worn = ""

    @property
    def known(self) -> Mapping[str, Adapter]:
        return self._known.adapters

    def learn(self, name: str, path: str) -> None:
        """Look at an adapter's folder and load it; another one of that name is forgotten.

        Raises:
            BadWeights: it must not be loaded, lies elsewhere than adapters do, or there are too many.
        """
        adapter = self._known.look(name, path)
        self.forget(name)
        self._load(name, adapter)
        self._known.adapters[name] = adapter

    def forget(self, name: str) -> bool:
        """Whether there was such an adapter."""
        self._drop(name)
        return self._known.adapters.pop(name, None) is not None

    def wear(self, name: str | None) -> str:
        """Answer with an adapter from now on, None: as the bare model. Gives what is worn: as long as that is the same,
        what was computed holds.

        Raises:
            BadWeights: its folder has gone, or is no longer what it was.
            KeyError: it is not known.
        """
        if name is None:
            self._bare()
            return self._worn
        if name not in self._loaded:
            self._load(name, self._known.again(name))
        key = self._loaded[name] = self._loaded.pop(name)
        if key != self._worn:
            self._peft.set_adapter(key)
            self._peft.base_model.enable_adapter_layers()
            self._worn = key
        return self._worn

    def _bare(self) -> None:
        if self._worn:
            self._peft.base_model.disable_adapter_layers()
            self._worn = ""

    def _load(self, name: str, adapter: Adapter) -> None:
        """
        Raises:
            BadAdapter
        """
        for other in tuple(self._loaded)[: max(0, len(self._loaded) - MOST_LOADED + 1)]:
            self._drop(other)
        self._bare()
        self._count += 1
        key = f"a{self._count}"  # peft takes no dots
        try:
            self._peft = put_on(self._model, self._peft, key, adapter)
        except (ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
            raise BadAdapter(f"{adapter.folder} cannot be loaded: {type(error).__name__}") from error
        self._peft.base_model.disable_adapter_layers()
        self._loaded[name] = key

    def _drop(self, name: str) -> None:
        """From memory; without any adapter the model is what it was before the first."""
        key = self._loaded.pop(name, None)
        if key is None:
            return
        self._bare()
        if self._loaded:
            self._peft.delete_adapter(key)
        else:
            self._peft.unload()
            self._peft = None


def put_on(model: Any, carrying: Any, key: str, adapter: Adapter) -> Any:
    """The model with one adapter more.

    Raises:
        BadAdapter: it cannot be taken off again exactly, its numbers are none, or they fit nothing.
        ValueError, RuntimeError, OSError, KeyError, TypeError: of peft, torch and safetensors.
    """
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    if any(".lora_" not in name for name in shapes_in(adapter.folder / WEIGHTS, MOST_HEADER_BYTES)):
        raise BadAdapter(f"{adapter.folder} has trained biases, which stay when an adapter is set aside; train without")
    tensors: Mapping[str, Any] = load_file(adapter.folder / WEIGHTS)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise BadAdapter(f"{adapter.folder / WEIGHTS} holds numbers that are none")
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        target_modules=list(adapter.modules),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    with ExitStack() as undo:
        if carrying is None:
            put = get_peft_model(model, config, adapter_name=key)
            undo.callback(put.unload)
        else:
            put = carrying
            put.add_adapter(key, config)
            undo.callback(put.delete_adapter, key)
        strange = set_peft_model_state_dict(put, tensors, adapter_name=key).unexpected_keys
        if strange:
            raise BadAdapter(f"{adapter.folder / WEIGHTS} does not fit the model: {strange[0]!r:.100}")
        undo.pop_all()
    return put.eval()
