"""An encoder that is loaded for features only: which one, on which device, in which arithmetic."""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from pipeline.encoders.attention import with_attention
from pipeline.encoders.encoder import Encoder, take_tokens
from pipeline.encoders.export import weights_sha256
from pipeline.encoders.load import load_encoder
from pipeline.runtime import devices
from stores.errors import EncoderError
from stores.format import recipe
from stores.io.files import first_line

_BATCH = {"cuda": 256, "mps": 64, "cpu": 16}


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Which encoder is loaded, and how it computes; small, hashable and picklable."""

    name: str
    """Preset, timm name, ``hf-hub:owner/name``, folder, or ``module:function``."""
    weights: Path | None = None
    random_weights: int | None = None
    pooling: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    """Views per forward pass; None for the device's usual number."""
    compile: bool = False
    channels_last: bool = False
    trust_remote_code: bool = False
    view_px: int | None = None
    """Side of the views; None for the encoder's own. An encoder that does not take it keeps its own."""
    room_px: int | None = None
    """Side of what views are cut from: views are no larger where the encoder takes any size."""
    with_tokens: bool = False
    """Whether `OnDevice.launch_tokens` is what a compiled encoder is compiled for."""

    @classmethod
    def of(cls, name: str, options: Any, with_tokens: bool = False, **sizes: int | None) -> Self:
        """The encoder `name` with the fields that a stage's options have of these, and ``view_px`` or ``room_px``."""
        own = {field.name for field in dataclasses.fields(cls)} - {"name", "with_tokens"}
        given = {key: getattr(options, key) for key in own if hasattr(options, key)}
        return cls(name, with_tokens=with_tokens, **given | sizes)


@dataclass(frozen=True, slots=True)
class OnDevice:
    """An encoder on its device, in its arithmetic."""

    encoder: Encoder
    device: torch.device
    dtype: torch.dtype
    dtype_reason: str
    batch_size: int
    identity: recipe.Teacher
    """What decides a feature's value; the recipe has it of a teacher."""
    compile_seconds: float | None = None
    """What `compiled` took; None where the encoder is not compiled."""

    def close(self) -> None:
        """Nothing: its memory is free when nobody refers to it. A process keeps it as a `work.Station`."""

    def computing_in(self, dtype: str) -> Self:
        """The same encoder in the arithmetic of ``--dtype``."""
        arithmetic, reason = devices.choose_dtype(dtype, self.device)
        identity = dataclasses.replace(self.identity, dtype=devices.dtype_name(arithmetic))
        return dataclasses.replace(self, dtype=arithmetic, dtype_reason=reason, identity=identity)

    @torch.inference_mode()
    def launch(self, views: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Start a forward pass and return its features, (B, dim) float32 on the device.

        On CUDA this returns before the device is done.

        Parameters
        ----------
        views : uint8 (B, crop_px, crop_px, 3)
        """
        batch = self._sent(self._whole(views))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.encoder(batch).float()[: len(views)]

    @torch.inference_mode()
    def launch_tokens(
        self, views: npt.NDArray[np.uint8], positions: npt.NDArray[np.int32]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `launch`, with the patch tokens at `positions`, (B, t, width) float32 on the device.

        Parameters
        ----------
        positions : int32 (B, t)
            In the grid of patches, counted row by row.
        """
        batch, chosen = self._sent(self._whole(views)), self._sent(positions).long()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features, tokens = self.encoder.with_tokens(batch)
        return features.float()[: len(views)], take_tokens(tokens[: len(views)], chosen).float()

    @torch.inference_mode()
    def launch_attention(
        self, views: npt.NDArray[np.uint8], positions: npt.NDArray[np.int32]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `launch_tokens`, with the attention of the class token, (B, grid * grid) float32 on the device.

        Parameters
        ----------
        positions : int32 (B, t)
            t may be 0.
        """
        batch, chosen = self._sent(views), self._sent(positions).long()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features, tokens, found = with_attention(self.encoder, batch)
        return features.float(), take_tokens(tokens, chosen).float(), found

    def _whole(self, views: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """As many views as a compiled encoder was compiled for; the last one fills up a short batch."""
        missing = self.batch_size - len(views)
        if self.compile_seconds is None or missing <= 0:
            return views
        return np.concatenate([views, np.repeat(views[-1:], missing, axis=0)])

    def _sent(self, array: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def compiled(loaded: OnDevice, tokens: bool = False) -> OnDevice:
    """The same encoder through ``torch.compile``, for batches of its size alone, and warmed up.

    Parameters
    ----------
    tokens : bool
        For `OnDevice.launch_tokens` instead of `OnDevice.launch`.

    Raises
    ------
    EncoderError
        When it cannot be compiled: there is no C++ compiler, or the model is beyond the compiler.
    """
    name = "with_tokens" if tokens else "forward"
    encoder, side = loaded.encoder, loaded.identity.image_px
    setattr(encoder, name, torch.compile(getattr(encoder, name), dynamic=False))
    ready = dataclasses.replace(loaded, compile_seconds=0.0)
    views = np.zeros((loaded.batch_size, side, side, 3), np.uint8)
    positions = np.zeros((loaded.batch_size, 1), np.int32)
    threads, on_cpu = torch.get_num_threads(), loaded.device.type == "cpu"
    began = time.monotonic()
    # code for a CPU is made for a number of threads: that of the threads which will run it
    with ThreadPoolExecutor(1, "compile", torch.set_num_threads, (1 if on_cpu else threads,)) as pool:
        work: Callable[..., Any] = ready.launch_tokens if tokens else ready.launch
        try:
            pool.submit(work, *((views, positions) if tokens else (views,))).result()
        except Exception as error:  # the compiler's errors have no base class
            raise EncoderError(
                f"--compile: {encoder.name} cannot be compiled here ({first_line(error)}); leave --compile out"
            ) from error
        finally:
            torch.set_num_threads(threads)
    return dataclasses.replace(ready, compile_seconds=time.monotonic() - began)


def load_on_device(spec: EncoderSpec) -> OnDevice:
    """Load an encoder onto its device, compiled if that is asked for; see `pipeline.encoders.load_encoder`."""
    where = devices.choose_device(spec.device)
    arithmetic, reason = devices.choose_dtype(spec.dtype, where)
    encoder = load_encoder(
        spec.name,
        weights=spec.weights,
        random_weights=spec.random_weights,
        pooling=spec.pooling,
        trust_remote_code=spec.trust_remote_code,
    )
    side = spec.view_px or min(spec.room_px or encoder.image_px, encoder.image_px)
    if encoder.takes(side):
        encoder = encoder.for_views(side)
    identity = recipe.Teacher(
        name=encoder.name,
        weights_sha256=weights_sha256(encoder),
        pooling=encoder.pooling,
        mean=encoder.mean,
        std=encoder.std,
        image_px=encoder.image_px,
        dim=encoder.dim,
        dtype=devices.dtype_name(arithmetic),
        shrink=encoder.shrink,
        class_tokens=encoder.class_tokens,
    )
    if spec.channels_last:
        encoder.use_channels_last()
    batch_size = spec.batch_size or _BATCH[where.type]
    loaded = OnDevice(encoder.to(where), where, arithmetic, reason, batch_size, identity)
    return compiled(loaded, spec.with_tokens) if spec.compile else loaded
