"""The encoder: a backbone with the Normalize and the pooling that belong to it."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.encoders.hub import brief
from pipeline.encoders.picture import PictureTransform, normalized
from pipeline.encoders.presets import Preset
from stores.errors import EncoderError


class Encoder(nn.Module):
    """A backbone with the Normalize and the pooling that belong to it.

    ``mean``, ``std``, ``image_px``, ``shrink``, ``mpp``, ``pooling``, ``class_tokens``, ``dim``, ``licence`` and
    ``terms`` are those of `preset`. The constants of Normalize stay float32 when the encoder is cast, and are in no
    state dict.

    Parameters
    ----------
    preset
        What the backbone is.
    backbone
        Maps normalised float images (B, 3, H, W) to tokens (``forward_features``, for the poolings that begin
        with ``cls``) or to features (``forward``).

    Raises
    ------
    EncoderError
        The pooling needs a class token, and `backbone` has none; or it has fewer than `preset` says.
    """

    _normalize: Tensor

    def __init__(self, preset: Preset, backbone: nn.Module) -> None:
        super().__init__()
        if min(preset.std) <= 0:
            raise EncoderError(f"std of {preset.name} is {preset.std}; positive numbers are expected")
        if preset.pooling != "forward" and getattr(backbone, "cls_token", None) is None:
            raise EncoderError(
                f"{preset.name} has no class token, which pooling {preset.pooling!r} needs; use 'forward'"
            )
        if preset.class_tokens > 1:
            most = 0 if preset.pooling == "forward" else getattr(backbone, "num_prefix_tokens", 1)
            if preset.class_tokens > most:
                raise EncoderError(
                    f"{preset.name}: class_tokens is {preset.class_tokens}; the model has {most} that its pooling "
                    f"{preset.pooling!r} can take"
                )
        self.preset = preset
        self.name = preset.name
        self.mean, self.std = preset.mean, preset.std
        self.image_px, self.shrink, self.mpp = preset.image_px, preset.shrink, preset.mpp
        self.pooling, self.dim, self.class_tokens = preset.pooling, preset.dim, preset.class_tokens
        self.licence, self.terms = preset.licence, preset.terms
        self.backbone = backbone
        self._layout = torch.contiguous_format
        self.register_buffer("_normalize", _constants(preset), persistent=False)

    def forward(self, views: Tensor) -> Tensor:
        """Features of views.

        Parameters
        ----------
        views : uint8 (B, H, W, 3), RGB
            H = W = ``image_px``, unless the backbone takes any size.

        Returns
        -------
        Tensor
            (B, dim), in the dtype that the backbone computes in.

        Raises
        ------
        EncoderError
            The views have another size, type or shape, or a user's backbone returns another shape than it declared.
        """
        self._check(views)
        return self.of_images(self.normalized(views))

    def of_images(self, images: Tensor) -> Tensor:
        """Features of images that are normalised already: what `forward` does after `normalized`.

        Parameters
        ----------
        images : float (B, 3, H, W)
            H and W as the backbone sees them, after squares were averaged; in the dtype of its weights.
        """
        if self.pooling == "forward":
            return self._checked(self.backbone(images), images)
        return self._pooled(self.backbone.forward_features(images))  # type: ignore[operator]

    @property
    def transform(self) -> PictureTransform:
        """What makes an image for `of_images` of a picture: for benchmarks, which bring pictures of any size."""
        return PictureTransform(self.image_px, self.shrink, self.mean, self.std)

    def takes(self, view_px: int) -> bool:
        """Whether views of this side fit: its own, or any multiple of its patch where it takes any size."""
        free = _takes_any_size(self.backbone) and view_px % (self.shrink * _patch_px(self.backbone)) == 0
        return view_px == self.image_px or (free and view_px > 0)

    def for_views(self, view_px: int) -> "Encoder":
        """The same encoder, whose ``image_px`` is the side of the views that it will get.

        A CNN has a usual size and takes any other that its layers do not shrink to nothing; what was embedded with it
        has one size all the same.

        Raises
        ------
        EncoderError
            It does not take views of this side.
        """
        if view_px == self.image_px:
            return self
        if not self.takes(view_px):
            raise EncoderError(
                f"{self.name} takes {self.image_px} px, not {view_px}{other_size(self.resizable, view_px)}"
            )
        if not getattr(self.backbone, "dynamic_img_size", False):
            self._require_long_enough(view_px)
        return self.like(replace(self.preset, image_px=view_px), self.backbone)

    def like(self, preset: Preset, backbone: nn.Module) -> "Encoder":
        """Another encoder in the same mode, with the same memory layout."""
        other = Encoder(preset, backbone).train(self.training)
        other._layout = self._layout
        return other

    def shrinking(self, by: int) -> "Encoder":
        """The same encoder for views whose side is `by` times as long: each pixel that it sees is the mean of a square.

        Means are integers, rounded half up: `pipeline.encoders.picture.shrunk`.

        Raises
        ------
        EncoderError
            It does so already.
        """
        if by == 1:
            return self
        if self.shrink != 1:
            raise EncoderError(f"{self.name} averages squares of {self.shrink} px already")
        return self.like(replace(self.preset, image_px=self.image_px * by, shrink=by), self.backbone)

    @torch.inference_mode()
    def _require_long_enough(self, view_px: int) -> None:
        """Raise EncoderError when the layers of a CNN cannot take views of this side: one view tells."""
        training = self.training
        try:
            self.eval()(torch.zeros(1, view_px, view_px, 3, dtype=torch.uint8, device=self._normalize.device))
        except RuntimeError as error:
            raise EncoderError(
                f"{self.name} takes {self.image_px} px and cannot take {view_px} px ({brief(error)}); choose larger "
                "views or another encoder"
            ) from error
        finally:
            self.train(training)

    def use_channels_last(self) -> None:
        """Keep images and weights with their channels last: CNNs are often faster, features differ by rounding."""
        self._layout = torch.channels_last
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def resizable(self) -> tuple[str, int] | None:
        """Its name and the side of its patches, where timm builds it for another size that its name says; else None."""
        patch = getattr(getattr(self.backbone, "patch_embed", None), "patch_size", None)
        built = getattr(getattr(self.backbone, "patch_embed", None), "img_size", None) is not None
        plain = self.name.removeprefix("timm:").partition("?")[0] == self.preset.arch
        return (self.name, int(patch[0])) if patch and built and plain and self.shrink == 1 else None

    def with_tokens(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Features of views and their patch tokens, from one pass.

        Returns
        -------
        tuple
            What `forward` returns, and (B, grid * grid, width): one token for each patch of the grid, row by row; class
            token and registers are left out. See `token_grid`.

        Raises
        ------
        EncoderError
            As `forward`; or the backbone has no square grid of patch tokens.
        """
        grid, _ = token_grid(self)
        self._check(views)
        tokens = self.backbone.forward_features(self.normalized(views))  # type: ignore[operator]
        patches = tokens[:, self.backbone.num_prefix_tokens :]
        if patches.ndim != 3 or patches.shape[1] != grid**2:
            raise EncoderError(
                f"{self.name} returned {by_sides(patches.shape)} as patch tokens; "
                f"{len(views)}x{grid**2}x(length) expected"
            )
        return self._pooled(tokens), patches

    def _pooled(self, tokens: Tensor) -> Tensor:
        if self.pooling == "forward":
            return self._checked(self.backbone.forward_head(tokens), tokens)  # type: ignore[operator]
        features = tokens[:, 0] if self.class_tokens == 1 else tokens[:, : self.class_tokens].flatten(1)
        if self.pooling == "cls-average":
            features = tokens[:, : self.class_tokens].mean(1)
        elif self.pooling == "cls+mean":
            patches = tokens[:, self.backbone.num_prefix_tokens :]  # registers stay out
            features = torch.cat([features, patches.mean(1)], dim=-1)
        return self._checked(features, tokens)

    def _checked(self, features: Tensor, of: Tensor) -> Tensor:
        if torch.jit.is_tracing():  # sizes are symbols then, and an export is compared afterwards
            return features
        count = len(of)
        if features.shape != (count, self.dim):
            raise EncoderError(
                f"{self.name} returned {by_sides(features.shape)} for {count} views; {count}x{self.dim} expected"
            )
        return features

    def normalized(self, views: Tensor) -> Tensor:
        """Views uint8 (B, H, W, 3) as the backbone sees them: (B, 3, H, W), in the dtype of its weights."""
        images = normalized(views, self._normalize, self.shrink, self._layout)
        parameter = next(self.backbone.parameters(), images)
        return images.to(parameter.dtype)

    def _check(self, views: Tensor) -> None:
        if views.dtype != torch.uint8 or views.ndim != 4 or views.shape[-1] != 3:
            dtype = str(views.dtype).removeprefix("torch.")
            raise EncoderError(f"views are {dtype} {by_sides(views.shape)}; uint8 (B, H, W, 3) expected")
        height, width = views.shape[1:3]
        if _takes_any_size(self.backbone):
            patch = self.shrink * _patch_px(self.backbone)
            if height % patch or width % patch:
                raise EncoderError(
                    f"views are {width}x{height} px, {self.name} takes multiples of {patch} px; choose another crop"
                )
        elif (height, width) != (self.image_px, self.image_px):
            raise EncoderError(
                f"views are {width}x{height} px, {self.name} takes {self.image_px}x{self.image_px} px; choose a "
                f"policy that crops to {self.image_px}, or another encoder{other_size(self.resizable, width)}"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Encoder":
        super()._apply(fn, recurse)
        # .to(bfloat16) would round the mean to three digits
        self._normalize = _constants(self.preset).to(self._normalize.device)
        return self


def _constants(preset: Preset) -> Tensor:
    return torch.tensor([preset.mean, preset.std], dtype=torch.float32)


def _takes_any_size(backbone: nn.Module) -> bool:
    known = getattr(backbone, "pretrained_cfg", None) or {}
    return bool(getattr(backbone, "dynamic_img_size", False)) or not known.get("fixed_input_size", True)


def _patch_px(backbone: nn.Module) -> int:
    if not getattr(backbone, "dynamic_img_size", False):
        return 1
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", (1,))
    return int(patch[0])


def other_size(resizable: tuple[str, int] | None, view_px: int) -> str:
    """How to name an encoder so that timm builds it for views of another side, as the end of a message; may be empty.

    >>> other_size(("vit_small_patch14_dinov2", 14), 256)
    ', or have it built for such views: vit_small_patch14_dinov2?img_size=224'
    """
    if resizable is None:
        return ""
    name, patch = resizable
    side = 224 if view_px >= 224 and 224 % patch == 0 else view_px // patch * patch
    bare = re.sub(r"(?<=[?&])img_size=[^&]*&?", "", name).rstrip("?&")
    return (
        f", or have it built for such views: {bare}{'&' if '?' in bare else '?'}img_size={side}"
        if side
        else ""
    )


def by_sides(shape: torch.Size) -> str:
    return "x".join(map(str, shape))


def token_grid(encoder: "Encoder") -> tuple[int, int]:
    """Side of the grid of patch tokens, and their length.

    Raises
    ------
    EncoderError
        The backbone is not a vision transformer of timm with a square grid.
    """
    backbone: Any = encoder.backbone
    known = all(hasattr(backbone, name) for name in ("forward_features", "forward_head", "num_prefix_tokens"))
    sides = tuple(getattr(getattr(backbone, "patch_embed", None), "grid_size", None) or ())
    if getattr(backbone, "dynamic_img_size", False):  # built for one size, used for another
        sides = (encoder.image_px // encoder.shrink // _patch_px(backbone),) * len(sides)
    if not known or len(sides) != 2 or sides[0] != sides[1]:
        raise EncoderError(
            f"{encoder.name} has no square grid of patch tokens; tokens need a vision transformer (ViT) of timm"
        )
    return int(sides[0]), int(backbone.embed_dim)


def take_tokens(tokens: Tensor, positions: Tensor) -> Tensor:
    """Take the tokens at int64 `positions` (B, t) from the patch tokens (B, grid * grid, width): (B, t, width)."""
    return tokens.gather(1, positions[:, :, None].expand(-1, -1, tokens.shape[2]))
