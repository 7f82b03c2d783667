"""Nyströmformer (Xiong et al. 2021, equations 13 to 15).

The landmarks Q̃ and K̃ are the means of queries and keys over M segments of the text. With scaled scores,

    F = softmax(Q K̃ᵀ)      A = softmax(Q̃ K̃ᵀ)      B = softmax(Q̃ Kᵀ)

    softmax(Q Kᵀ) ≈ F A⁺ B        output = F A⁺ (B V)

With ``conv_kernel``, a depthwise convolution of V along the text is added, as in the paper's models. A⁺ is
approximated by a fixed number of iterations (equation 14). In a text of at most M tokens, every token is a landmark,
and softmax(Q Kᵀ) is computed exactly. There is no causal form: a landmark is a mean over past and future.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.batch import without_autocast
from ..engines.call import AttentionCall
from ..engines.dense import at_least_fp32, dense_attention, repeat_heads
from .common.base import LayerSizes, Mechanism, check_all_queries, drop_keys, softmax_over
from .common.capabilities import About
from .common.options import Options, option
from .common.registry import register_mechanism
from .linformer import project_length


@dataclasses.dataclass(frozen=True)
class NystromOptions(Options):
    num_landmarks: int = option(
        64, "M, the number of segments whose means are the landmarks", "segments", least=1, most=4096
    )
    iterations: int = option(6, "iterations of the pseudo-inverse", "steps", least=1, most=64)
    conv_kernel: int | None = option(
        None,
        "width of the depthwise convolution of the values, odd; none leaves it out",
        "tokens",
        parity="odd",
        most=65535,
    )
    inv_coeff_init_option: str = option(
        "exact",
        "initial pseudo-inverse: exact divides by the norm of each matrix, original by the largest norm in the batch",
        choices=("exact", "original"),
    )


@register_mechanism("nystrom")
class Nystrom(Mechanism):
    about = About(
        summary="softmax attention approximated through landmarks, means of segments of the text",
        paper="Xiong et al. 2021, Nyströmformer, eq. 13-15",
        when="an encoder that you train, whose attention is smooth: landmarks stand for segments of the text",
        engine="low_rank",
        cost="N·M",
        sample={"num_landmarks": 16},
        covering=lambda length, causal: {"num_landmarks": length},
    )
    causal = False
    capabilities = Mechanism.capabilities.but(
        takes_score_mod=False, takes_fewer_queries=False, position_dependent=False, images="any"
    )
    per_head_tensors: tuple[str, ...] | None = ()
    options: NystromOptions

    def __init__(self, sizes: LayerSizes, options: NystromOptions) -> None:
        super().__init__(sizes, options)
        self.norm_per_matrix = options.inv_coeff_init_option == "exact"
        self.capabilities = self.capabilities.but(ignores_padding=self.norm_per_matrix)
        if not self.norm_per_matrix:  # the norm is a maximum over all heads
            self.per_head_tensors = None
        elif options.conv_kernel is not None:
            self.per_head_tensors = ("conv",)
        if options.conv_kernel is not None:
            self.conv = nn.Parameter(torch.empty(sizes.num_heads, options.conv_kernel))
            """``(H, conv_kernel)``, the convolution of each head's values."""
            self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise the convolution to zero, so that it adds nothing."""
        super().reset_parameters(generator)
        if self.options.conv_kernel is not None:
            nn.init.zeros_(self.conv)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The weights ``(B, H, N, N)``: F A⁺ B, and the convolution of the values as a band."""
        check_all_queries(self, q, k)
        k = repeat_heads(k, q.shape[1])
        count, scale, real = self.options.num_landmarks, call.scale_for(q.shape[3]), call.real(k)
        means = segment_matrix(real, count, q.dtype)[:, None]
        filled = (means > 0).any(-1)  # whether a landmark has tokens
        q_marks, k_marks = means @ q, means @ k

        # The matrices F, A and B of the module's docstring.
        f = softmax_over(scale * q @ k_marks.mT, filled[:, :, None])
        both = filled[..., None] & filled[:, :, None]  # empty landmarks would change the norm of the batch
        a = softmax_over(scale * q_marks @ k_marks.mT, both)
        b = softmax_over(scale * q_marks @ k.mT, real[:, None, None])

        # A⁺ by the iteration of equation 14. A text of at most M tokens has the weights of softmax attention.
        z = pseudo_inverse(a, self.options.iterations, self.norm_per_matrix)
        weights = f @ z @ b
        direct = softmax_over(scale * q @ k.mT, real[:, None, None])
        weights = torch.where(real.sum(-1)[:, None, None, None] > count, weights, direct)
        if self.options.conv_kernel is None:
            return weights

        # The convolution of the values as a band.
        index = torch.arange(k.shape[2], device=real.device)
        step = index[None, :] - index[:, None] + self.options.conv_kernel // 2
        inside = (step >= 0) & (step < self.options.conv_kernel)
        band = self.conv.to(weights.dtype)[:, step.clamp(0, self.options.conv_kernel - 1)] * inside
        return weights + band * (real[:, None, None, :] & real[:, None, :, None])

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output ``(B, H, N, D)``: exact if every token is a landmark, else F A⁺ (B V), plus the convolution."""
        check_all_queries(self, q, k)
        length, heads = k.shape[2], q.shape[1]
        k = repeat_heads(k, heads)
        v = drop_keys(repeat_heads(v, heads), call.dropout)
        call = call.replace(dropout=0.0)
        real = call.key_mask
        if length <= self.options.num_landmarks:
            out = dense_attention(q, k, v, call)
        else:
            # A⁺ has large entries of both signs that cancel, so its factors must not be in half precision.
            with without_autocast(q):
                exact_v = at_least_fp32(v)
                out = self._approximated(at_least_fp32(q), at_least_fp32(k), exact_v, real, call).to(q.dtype)
        if self.options.conv_kernel is None:
            return out

        # Add the convolution of the values; padding is 0 before and after it.
        kernel = self.conv.to(v.dtype)[:, None, :, None]
        padding = (self.options.conv_kernel // 2, 0)
        if real is None:
            return out + F.conv2d(v, kernel, padding=padding, groups=heads)
        real = real[:, None, :, None]
        return out + F.conv2d(v * real, kernel, padding=padding, groups=heads) * real

    def _approximated(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, call: AttentionCall) -> Tensor:
        """``F A⁺ (B V)``, ``(B, H, N, D)``, for inputs with more tokens than landmarks. ``real``: the key mask."""
        count, scale = self.options.num_landmarks, call.scale_for(q.shape[3])
        filled, means = None, None
        if real is None:
            q_marks, k_marks = segment_means(q, count), segment_means(k, count)
        else:
            means = segment_matrix(real, count, q.dtype).mT
            filled = (means > 0).any(1)  # (B, M): whether a landmark has tokens
            q_marks, k_marks = project_length(means, q), project_length(means, k)
        scores = q_marks @ k_marks.mT * scale
        if filled is None:
            middle = scores.softmax(-1)
        else:  # empty landmarks would change the norm of the batch
            middle = softmax_over(scores, filled[:, None, :, None] & filled[:, None, None])
        inverse = pseudo_inverse(middle, self.options.iterations, self.norm_per_matrix)
        values = inverse @ dense_attention(q_marks, k, v, call)
        if means is not None and real is not None:  # exact for texts of at most M tokens, whose tokens are landmarks
            values = torch.where(real.sum(-1)[:, None, None, None] > count, values, project_length(means, v))
        return dense_attention(q, k_marks, values, call.with_mask(filled))

    def covers(self, length: int, causal: bool = False) -> bool:
        return length <= self.options.num_landmarks and self.options.conv_kernel is None

    def pairs(self, length: int, causal: bool = False) -> int:
        """Queries × landmark keys, landmark queries × keys, and landmarks × landmarks."""
        landmarks = self.options.num_landmarks
        return length * length if length <= landmarks else landmarks * (2 * length + landmarks)


def pseudo_inverse(a: Tensor, iterations: int, per_matrix: bool) -> Tensor:
    """An approximate Moore–Penrose inverse of each ``a (B, H, M, M)``, whose rows are non-negative and sum to 1.

    Iterates Z ← ¼ Z (13 I − A Z (15 I − A Z (7 I − A Z))) from Z = Aᵀ / ‖A‖₁. If ``per_matrix`` is False, the largest
    norm ‖A‖₁ is used for all matrices.
    """
    shape = a.shape
    a = a.flatten(0, 1)
    norms = a.sum(-2).amax(-1)
    if not per_matrix:
        norms = norms.amax(0).expand_as(norms)
    z = a.transpose(1, 2) / norms.clamp(min=torch.finfo(a.dtype).tiny)[:, None, None]
    eye = torch.eye(shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        product = torch.bmm(a, z)
        inner = torch.baddbmm(15 * eye - 7 * product, product, product)
        inner = torch.baddbmm((13 * eye).expand_as(product), product, inner, alpha=-1)
        z = torch.bmm(z, inner) * 0.25
    return z.view(shape)


def segment_matrix(real: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Matrix ``(B, M, N)`` that averages the real tokens of each sequence in M = ``count`` segments.

    Segments are consecutive tokens. If a sequence has n real tokens, its segments have ⌊n/M⌋ tokens or one more, the
    shorter ones first. If n < M, each token is a segment, and further segments are empty. A token's entry in the row
    of its segment is 1 / (tokens of the segment). All other entries are 0, also those of padding (``real (B, N)`` is
    False).
    """
    num_real = real.sum(-1, keepdim=True)
    token = real.long().cumsum(-1) - 1
    size = num_real // count
    num_shorter = (size + 1) * count - num_real
    boundary = num_shorter * size  # first token of the longer segments
    segment = torch.where(token < boundary, token // size.clamp(min=1), num_shorter + (token - boundary) // (size + 1))
    in_segment = (segment[:, None] == torch.arange(count, device=real.device)[:, None]) & real[:, None]
    return in_segment.to(dtype) / in_segment.sum(-1, keepdim=True).clamp(min=1)


def segment_means(x: Tensor, count: int) -> Tensor:
    """Means ``(B, H, M, D)`` of M = ``count`` segments of ``x (B, H, N, D)``, as by :func:`segment_matrix`. There must
    be no padding, and N > M."""
    length = x.shape[2]
    size = length // count
    num_shorter = (size + 1) * count - length
    boundary = num_shorter * size  # first token of the longer segments
    means = [x[:, :, :boundary].unflatten(2, (num_shorter, size)).mean(3)]
    if num_shorter < count:
        means.append(x[:, :, boundary:].unflatten(2, (count - num_shorter, size + 1)).mean(3))
    return torch.cat(means, 2)
